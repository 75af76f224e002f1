"""Keeping runs for a comparison: what a page needs of a run folder, without its weights, and the summary of a suite."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers, sync_folder, temporary_beside
from img2img.files.json_files import write_json
from img2img.files.lock import hold
from img2img.files.paths import expanded
from img2img.files.yaml import read_yaml
from img2img.research.suites.aggregate import final, task_bytes
from img2img.research.suites.suite import Suite, read_suite
from img2img.training.mask_report import read_masks
from img2img.training.output_images import KINDS
from img2img.training.results import read_results
from img2img.training.saved_config import config_path

DATA = "DATA"
"""Stands for `data_root` in stored configs."""
_PATIENCE = 60.0
"""Seconds to wait for another process that stores a run of the same method."""


def store_run(run: Path, suite: Path, *, label: str, seed: int, pictures: bool = True) -> Path:
    """Copy a finished run into a suite, as `SUITE/runs/LABEL/SEED`; an earlier one of that label and seed is replaced.

    Copied are `results.json`, the config without paths of this machine, the training logs and, where there are any,
    `masks.json` and the rows of pictures. Weights never are.

    Args:
        run: the run folder.
        suite: the suite's folder; it is made if need be.
        label: the method's label, the name of a folder.
        seed: the run's seed, at least 0.
        pictures: whether `inputs/`, `outputs/` and `targets/` are copied too; a page shows those of each method's lowest seed.

    Returns:
        The folder of the stored run.

    Raises:
        InputError: the run has no `results.json`, a file of it is damaged, or the label or the seed cannot name a folder.
    """
    run, suite = expanded(run), expanded(suite)
    if not label or label.startswith(".") or "/" in label or "\\" in label or not label.isprintable():
        raise InputError(f"got the label {label!r}: expected a folder's name, such as piggyback_kernel; choose another")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"got the seed {seed!r}: expected a whole number from 0 on; give the run's own")
    read_results(run)
    if (run / "masks.json").is_file():
        read_masks(run / "masks.json")
    stored = suite / "runs" / label / str(seed)
    with hold(stored.parent, wait=_PATIENCE):
        clear_leftovers(stored.parent)
        beside, before = temporary_beside(stored), temporary_beside(stored)
        try:
            beside.mkdir()
            for path in _kept(run, pictures=pictures):
                target = beside / path.relative_to(run)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
            config = next((path for path in (config_path(run), run / "config.yaml") if path.is_file()), None)
            if config is not None:
                (beside / "config.yaml").write_text(plain_config(config), encoding="utf-8")
            if stored.exists():
                stored.rename(before)
            beside.rename(stored)
            sync_folder(stored.parent)
        finally:
            if before.exists() and not stored.exists():  # it failed, or Ctrl-C came between the two
                before.rename(stored)
            for rest in (beside, before):
                shutil.rmtree(rest, ignore_errors=True)
    return stored


def _kept(run: Path, *, pictures: bool) -> Iterable[Path]:
    yield run / "results.json"
    if (run / "masks.json").is_file():
        yield run / "masks.json"
    yield from sorted((run / "metrics").glob("*.csv"))
    for kind in KINDS if pictures else ():
        yield from sorted((run / kind).glob("*.jpg"))


def plain_config(path: Path) -> str:
    """A run's config as YAML that says nothing of the machine: no `hydra` block, `DATA` for the value of `data_root`, and of
    any other absolute path its last part.

    Raises:
        InputError: it is not YAML with keys.
    """
    config = read_yaml(path, "the config of a run", resolve=False)
    config.pop("hydra", None)
    root = config.get("data_root")
    return yaml.safe_dump(_without_paths(config, root if isinstance(root, str) else ""), sort_keys=False, allow_unicode=True)


def _without_paths(value: Any, root: str) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, root) for item in value]
    if not isinstance(value, str):
        return value
    if root.rstrip("/."):
        value = re.sub(rf"(?<![\w./-]){re.escape(root.rstrip('/'))}(?=/|$|[^\w.-])", DATA, value)
    if value.startswith(("/", "~")):
        return PurePosixPath(value).name
    return PureWindowsPath(value).name if PureWindowsPath(value).is_absolute() else value


def summarise(suite: Path) -> dict[str, Any]:
    """The figures of a suite in one small object, as its `summary.json` holds them.

    A method's `mean` is over seeds, of a task's primary metric after the whole sequence; `std` is the sample standard
    deviation, None with one seed; `bytes` is what the task stores beside what is shared. Tasks that a method lacks have no entry.

    Raises:
        InputError: as `read_suite`.
    """
    return summary_of(read_suite(suite))


def summary_of(suite: Suite) -> dict[str, Any]:
    """`summarise` for a suite that has been read."""
    methods: dict[str, Any] = {}
    for method in suite.methods:
        stats = {task.name: (final(method, task), task_bytes(method, task)) for task in suite.tasks}
        methods[method.label] = {
            name: {"mean": stat.mean, "std": stat.std, "seeds": stat.seeds, "bytes": size}
            for name, (stat, size) in stats.items()
            if stat is not None
        }
    return {
        "suite": suite.name,
        "commit": environment_of(suite, "commit"),
        "hardware": environment_of(suite, "device"),
        "tasks": [
            {"name": task.name, "metric": task.metric, "higher_is_better": task.higher_is_better, "trivial": task.trivial}
            for task in suite.tasks
        ],
        "methods": methods,
    }


def environment_of(suite: Suite, key: str) -> str | None:
    """What the runs say of their environment: one value, several as "a, b", or None."""
    values = [run.results.get("environment", {}).get(key) for run in suite.runs]
    return ", ".join(dict.fromkeys(str(value) for value in values if value)) or None


def write_summary(suite: Path) -> Path:
    """Write `SUITE/summary.json` and return its path.

    Raises:
        InputError: as `read_suite`.
    """
    return write_json(expanded(suite) / "summary.json", summarise(suite))
