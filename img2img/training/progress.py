"""`progress.json`: which tasks of a run are finished, with their figures; what a later run goes on from."""

from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.files.atomic import check_folder
from img2img.files.typed import NUMBER, NUMBER_OR_NULL, check_each, check_object, check_value
from img2img.training.checked_files import read_checked_json, write_checked_json
from img2img.training.config import Experiment, backbone_fingerprint, task_fingerprint

_RUN = {
    "fingerprints": dict, "backbone": (str, type(None)), "tasks": dict, "comparisons": dict, "shared_bytes": NUMBER,
    "rows": list, "changes": list, "environment": dict,
}  # fmt: skip
_TASK = {
    "before": NUMBER_OR_NULL, "val": NUMBER_OR_NULL, "best_step": NUMBER_OR_NULL, "train_seconds": NUMBER, "steps": NUMBER,
    "test_images": NUMBER, "value": NUMBER_OR_NULL, "figures": dict, "trivial": dict, "density": NUMBER_OR_NULL, "bytes": NUMBER,
}  # fmt: skip
_COMPARISON = {"value": NUMBER_OR_NULL, "figures": dict, "train_seconds": NUMBER, "bytes": NUMBER}
_REMEDY = (
    "restore it from a copy, or choose another folder (out=...). It alone says what is finished; what was learned is in "
    "bundle/ and learned/ as before"
)


def _fresh() -> dict[str, Any]:
    # backbone: the fingerprint of its training; tasks: an entry a task; comparisons: the same by method; rows and changes: an
    # entry after each; environment: what the last of them was measured on.
    entries = {"tasks": {}, "comparisons": {}, "shared_bytes": 0, "rows": [], "changes": []}
    return {"fingerprints": {}, "backbone": None, **entries, "environment": {}}


def read_progress(experiment: Experiment) -> dict[str, Any]:
    """What the run folder's earlier run finished; nothing, if there was none.

    Raises:
        InputError: the folder is a file or holds a run of another configuration, or `resume` is "never" and it holds any.
    """
    path, fresh = check_folder(experiment.folder, "out") / "progress.json", _fresh()
    if not path.is_file():
        if (experiment.folder / "summary.json").is_file():
            raise InputError(
                f"{experiment.folder} holds a study's results, which a run would replace: choose another folder (out=...)"
            )
        return fresh
    if experiment.resume == "never":
        raise InputError(f"{experiment.folder} holds a run already: choose another folder (out=...) or go on with resume=auto")
    progress = _read(path)
    finished, wanted = list(progress["tasks"]), list(experiment.sequence)
    if finished != wanted[: len(finished)]:
        raise InputError(
            f"{experiment.folder} holds a run that learned {finished}, the config asks for {wanted}: a sequence can grow at its "
            "end, but not change what was learned; choose another folder (out=...)"
        )
    for name, task in zip(finished, experiment.tasks, strict=False):
        if progress["fingerprints"].get(name) != task_fingerprint(experiment, task):
            raise InputError(
                f"{experiment.folder} holds a run that learned {name!r} under another configuration: go back to it, or choose "
                "another folder (out=...)"
            )
    return progress


def write_progress(experiment: Experiment, progress: dict[str, Any]) -> None:
    """Write `progress.json`, atomically, with the fingerprints of the finished tasks."""
    fingerprints = {task.name: task_fingerprint(experiment, task) for task in experiment.tasks if task.name in progress["tasks"]}
    backbone = backbone_fingerprint(experiment) if experiment.first_trains_backbone else None
    write_checked_json(experiment.folder / "progress.json", progress | {"fingerprints": fingerprints, "backbone": backbone})


def _read(path: Path) -> dict[str, Any]:
    """The contents of `progress.json`, every type checked.

    Raises:
        InputError: it is damaged, or an edit or another version made something else of it.
    """
    progress = read_checked_json(path, remedy=_REMEDY)
    if progress.keys() != _fresh().keys():
        raise InputError(f"{path} was not written by this version of img2img: choose another folder (out=...)")
    check_object(progress, str(path), _RUN, remedy=_REMEDY)
    check_each(progress["fingerprints"], f"{path}, fingerprints", str, remedy=_REMEDY)
    groups = [("tasks", progress["tasks"], _TASK)]
    groups += [(f"comparisons, {method:.60}", entries, _COMPARISON) for method, entries in progress["comparisons"].items()]
    for kind, entries, form in groups:
        check_value(entries, f"{path}, {kind}", dict, _REMEDY)
        for name, entry in entries.items():
            where = f"{path}, {kind}, {name:.60}"
            check_object(entry, where, form, remedy=_REMEDY)
            for figures in {"figures", "trivial"} & form.keys():
                check_each(entry[figures], f"{where}, {figures}", NUMBER_OR_NULL, remedy=_REMEDY)
    count = len(progress["tasks"])
    for key in ("rows", "changes"):
        if len(progress[key]) != count:
            raise InputError(f"{path}, {key}: expected one for each of {count} tasks, got {len(progress[key])}; {_REMEDY}")
        for index, row in enumerate(progress[key]):
            where = f"{path}, {key}[{index}]"
            check_value(row, where, list if key == "rows" else dict, _REMEDY)
            values = row if isinstance(row, dict) else dict(enumerate(row))
            if len(values) != index + (key == "rows"):
                raise InputError(f"{where}: expected a number for each task until then, got {len(values)}; {_REMEDY}")
            check_each({str(k): v for k, v in values.items()}, where, NUMBER_OR_NULL if key == "rows" else NUMBER, remedy=_REMEDY)
    return progress


def source_of_backbone(source: Path, first: str, fingerprint: str) -> dict[str, Any]:
    """The entry of the first task of another run, whose backbone is to be used here.

    Raises:
        InputError: there is no such run, or its first task was learned under another configuration.
    """
    path = source / "progress.json"
    if not path.is_file():
        raise InputError(f"backbone_from={source} holds no run: expected progress.json there; give that of one with {first!r}")
    progress = _read(path)
    if progress["backbone"] != fingerprint or first not in progress["tasks"]:
        raise InputError(
            f"backbone_from={source}: its first task was learned under another configuration than {first!r} here; give one with "
            "the same first task, backbone, steps and seed, or leave backbone_from out"
        )
    entry: dict[str, Any] = progress["tasks"][first]
    return entry
