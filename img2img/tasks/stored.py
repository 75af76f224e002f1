"""What a task's file in a bundle says of the task: checked, and made a `Task` that is fit to run and opens nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from img2img.data.images.bit_depth import FULL
from img2img.errors import InputError
from img2img.files.untrusted import MAX_NAME, check_plain
from img2img.tasks import build_task
from img2img.tasks.base import Task

_SIDE = 1 << 16


def check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Refuse a file whose `info` has a field of a bundle's tasks (`task`, `figures`, `side`, `white`) that is none.

    Raises:
        InputError: `task` is no mapping, `figures` is none of numbers by names, `side` is no number of pixels, or `white` no
            value of 16 bits.
    """
    figures = info.get("figures", {})
    wrong = {
        "task": not isinstance(info.get("task", {}), dict),
        "figures": not isinstance(figures, dict) or not all(len(k) <= MAX_NAME and _is_figure(v) for k, v in figures.items()),
        "side": not _is_number(info.get("side"), most=_SIDE),
        "white": not _is_number(info.get("white"), most=FULL),
    }
    expected = {"task": "the task's kind and options", "figures": "numbers by names", "side": "a number of pixels"}
    expected["white"] = f"a value of 16 bits, 1 to {FULL}"
    for field, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(
                f"{path}: info.{field} is {info[field]!r:.80}: expected {expected[field]}; the file is damaged or forged, get it "
                "again from whoever made it"
            )


def _is_number(value: Any, *, most: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most)


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def stored_task(info: Mapping[str, Any]) -> Task:
    """The task that the `info` of a task's file describes, of what running it needs and nothing else.

    A path or a name of weights that a forged file has beside that is dropped: whatever is done with the task opens none of it.

    Raises:
        InputError: see `tasks.build_task`; or the options are larger than any are.
    """
    options = info.get("task", {})
    check_plain(options, "info.task")
    if isinstance(options.get("classes"), list):
        options = {**options, "classes": [_class_name(name) for name in options["classes"]]}
    return build_task(build_task(options).options())


def _class_name(name: Any) -> str:
    if isinstance(name, list | dict):
        raise InputError(f"info.task: the class {name!r:.80} is no name; get the file again from whoever made it")
    return str(name)  # YAML once read `no` and `1` as other things than text
