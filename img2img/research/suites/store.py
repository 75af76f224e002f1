"""The store of a suite: every run's metrics and config as a line of `runs.jsonl`, which reports are made from.

A change writes the whole file beside itself and renames it, under the folder's lock: a kill leaves the earlier file, and two
suites at once lose nothing.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers, write_bytes
from img2img.files.lock import hold
from img2img.files.paths import expanded
from img2img.files.yaml import read_yaml
from img2img.reports.read import read_training
from img2img.research.suites.schema import RUNS, About, Backbone, RunRecord, TaskRecord, line, parse
from img2img.training.mask_report import read_masks
from img2img.training.results import read_results
from img2img.training.run_folder import config_path
from img2img.validation import as_model

DATA = "DATA"
"""Stands for `data_root` in stored configs."""
PATIENCE = 60.0
"""Seconds to wait for another process that changes the store."""
_REMEDY = "restore it from a copy, or delete it and store the run again"


# ------------------------------------------------------------------ reading


def read_store(folder: Path) -> tuple[About, dict[str, RunRecord]]:
    """What a suite's `runs.jsonl` holds, checked: its first line, and the runs by their places, "STORE/runs.jsonl, line 2".

    Raises:
        InputError: there is no such file, it is of another version, or a line is damaged; names file and line.
    """
    path = expanded(folder) / RUNS
    if not path.is_file():
        there = "no such folder" if not path.parent.is_dir() else f"the folder has no {RUNS}"
        raise InputError(f"no runs in {folder}: {there}; give the folder of a suite, or fill one by pipelines/suite.py --store")
    try:
        first, *rest = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); restore it from a copy") from error
    about = parse(About, first, f"{path}, line 1", "restore it from a copy, or store its runs again in another folder")
    runs: dict[str, RunRecord] = {}
    known: dict[tuple[str, int], int] = {}
    for number, text in enumerate(rest, start=2):
        place = f"{path}, line {number}"
        runs[place] = run = parse(RunRecord, text, place, _REMEDY)
        earlier = known.setdefault((run.label, run.seed), number)
        if earlier != number:
            raise InputError(f"{place} is {run.label}, seed {run.seed}, as line {earlier} is: delete one of the two")
    return about, runs


# ------------------------------------------------------------------ writing


def store_run(run: Path, store: Path, *, label: str, seed: int) -> RunRecord:
    """Add a finished run to a store, which is made if need be; an earlier one of that label and seed is replaced.

    Args:
        run: the run folder. Its `results.json`, its config without paths of this machine, the validations of its training logs
            and its `masks.json`, if any, are kept.
        store: the suite's folder.
        label: the method's label.
        seed: the run's seed, at least 0.

    Raises:
        InputError: the run has no `results.json`, a file of it or the store is damaged, or the label or the seed cannot be used.
        FolderInUseError: another process keeps the store for a minute.
    """
    record = record_of(expanded(run), label=label, seed=seed)
    with _changed(store) as records:
        records[label, seed] = record
    return record


def describe_store(store: Path, about: About) -> None:
    """Set the title of a store and how its methods are presented.

    Raises:
        InputError: there are no runs, or the store is damaged.
    """
    read_store(store)
    with _changed(store, about):
        pass


@contextmanager
def _changed(store: Path, about: About | None = None) -> Iterator[dict[tuple[str, int], RunRecord]]:
    """The runs of a store by label and seed, to be changed in the block; then written, with `about` in place of the earlier."""
    store = expanded(store)
    path = store / RUNS
    with hold(store, wait=PATIENCE):
        clear_leftovers(store)
        before, runs = read_store(store) if path.exists() else (None, dict[str, RunRecord]())
        records = {(run.label, run.seed): run for run in runs.values()}
        yield records
        name = store.resolve().name
        about = about or before or About(suite=name, title=name)
        lines = [line(about), *(line(record) for _, record in sorted(records.items()))]
        write_bytes(path, "".join(f"{text}\n" for text in lines).encode())


# ------------------------------------------------------------------ a run folder as a record


def record_of(run: Path, *, label: str, seed: int) -> RunRecord:
    """What a store keeps of a run folder.

    Raises:
        InputError: as `store_run`.
    """
    if not label or label.startswith(".") or "/" in label or "\\" in label or not label.isprintable():
        raise InputError(f"got the label {label!r}: expected a folder's name, such as piggyback_kernel; choose another")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"got the seed {seed!r}: expected a whole number from 0 on; give the run's own")
    results = read_results(run).model_dump()
    config = next((path for path in (config_path(run), run / "config.yaml") if path.is_file()), None)
    values = {
        **_known(RunRecord, results),
        **_known(RunRecord, results["forgetting"]),
        "label": label,
        "seed": seed,
        "backbone": _known(Backbone, results["backbone"]),
        "tasks": [_task(run, task) for task in results["tasks"]],
        "config": None if config is None else plain_config(config),
        "masks": read_masks(run / "masks.json") if (run / "masks.json").is_file() else None,
    }
    return as_model(RunRecord, values, str(run / "results.json"), remedy="run the experiment again")


def _task(run: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    decoder_only = task["comparisons"].get("decoder_only", {})
    return {
        **_known(TaskRecord, task),
        "curve": training_curve(run, task["name"], task["primary_metric"]),
        "decoder_only": decoder_only.get("value"),
        "decoder_only_bytes": decoder_only.get("bytes"),
    }


def _known(model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a model has a field for."""
    return {key: value for key, value in values.items() if key in model.model_fields}


def training_curve(run: Path, task: str, metric: str) -> list[tuple[int, float]]:
    """(step, a metric on the validation images) of a task's trainings; empty without a log, or where all tasks train at once."""
    if any((run / "metrics").glob("*.joint.csv")):
        return []  # the log of its first task is the backbone's
    training = read_training(run, task, metric)
    return [] if training is None else training.curve.validation


def plain_config(path: Path) -> dict[str, Any]:
    """A run's config as plain values that name nothing of the machine.

    It has no `hydra` block, `DATA` for the value of `data_root`, and of any other absolute path its last part.

    Raises:
        InputError: it is not YAML with keys.
    """
    config = read_yaml(path, "the config of a run", resolve=False)
    config.pop("hydra", None)
    root = config.get("data_root")
    plain: dict[str, Any] = _without_paths(config, root if isinstance(root, str) else "")
    return plain


def _without_paths(value: Any, root: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_paths(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, root) for item in value]
    if not isinstance(value, str):
        return value
    if root.rstrip("/."):
        value = re.sub(rf"(?<![\w./-]){re.escape(root.rstrip('/'))}(?=/|$|[^\w.-])", DATA, value)
    if value.startswith(("/", "~")):
        return PurePosixPath(value).name
    return PureWindowsPath(value).name if PureWindowsPath(value).is_absolute() else value
