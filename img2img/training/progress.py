"""`progress.json`: which tasks of a run are finished, with their metrics; what a later run goes on from."""

from pathlib import Path

from img2img.errors import InputError
from img2img.files.atomic import check_folder
from img2img.files.yaml import read_yaml
from img2img.training.checked_files import read_checked_json, write_checked_json
from img2img.training.compose import without_script_keys
from img2img.training.config import Experiment, backbone_fingerprint, read_experiment, task_fingerprint
from img2img.training.config.fingerprint import task_differences
from img2img.training.results import VERSION, Progress
from img2img.validation import as_model

_REMEDY = (
    "restore it from a copy, or choose another folder (out=...). It alone says what is finished; what was learned is in "
    "bundle/ and strategy/ as before"
)


def read_progress(experiment: Experiment) -> Progress:
    """What the run folder's earlier run finished; nothing, if there was none.

    Raises:
        InputError: the folder is a file or holds a run of another configuration, or `resume` is "never" and it holds any.
    """
    path = check_folder(experiment.folder, "out") / "progress.json"
    if not path.is_file():
        if (experiment.folder / "summary.json").is_file():
            raise InputError(
                f"{experiment.folder} holds a study's results, which a run would replace: choose another folder (out=...)"
            )
        return Progress()
    if experiment.resume == "never":
        raise InputError(f"{experiment.folder} holds a run already: choose another folder (out=...) or go on with resume=auto")
    progress = progress_of(path)
    finished, wanted = list(progress.tasks), list(experiment.sequence)
    if finished != wanted[: len(finished)]:
        raise InputError(
            f"{experiment.folder} holds a run that learned {finished}, the config asks for {wanted}: a sequence can grow at its "
            "end, but not change what was learned; choose another folder (out=...)"
        )
    for name, task in zip(finished, experiment.tasks, strict=False):
        if progress.fingerprints.get(name) != task_fingerprint(experiment, task):
            raise InputError(
                f"{experiment.folder} holds a run that learned {name!r} under another configuration"
                f"{_difference(experiment, name)}: give the one that it has, or choose another folder (out=...)"
            )
    return progress


def _difference(experiment: Experiment, name: str) -> str:
    """What of a task's configuration is another than in the run's config, for a message; nothing where that cannot be told."""
    try:
        path = experiment.folder / "config" / "config.yaml"  # as of `run_folder`, which imports this module
        config = without_script_keys(read_yaml(path, "the config of a run"))
        found = task_differences(experiment, read_experiment({**config, "imports": []}), name)
    except (InputError, StopIteration):
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f" ({'; '.join(found[:3])}{more})" if found else ""


def write_progress(experiment: Experiment, progress: Progress) -> None:
    """Write `progress.json`, atomically, with the fingerprints of the finished tasks."""
    known = progress.fingerprints  # those of finished tasks were compared when the progress was read
    for task in experiment.tasks:
        if task.name in progress.tasks and task.name not in known:
            known[task.name] = task_fingerprint(experiment, task)
    backbone = backbone_fingerprint(experiment) if experiment.first_trains_backbone else None
    written = progress.model_copy(update={"backbone": backbone})
    write_checked_json(experiment.folder / "progress.json", written.model_dump())


def progress_of(path: Path) -> Progress:
    """The contents of a `progress.json`.

    Raises:
        InputError: it is damaged, or an edit or another version made something else of it.
    """
    value = read_checked_json(path, remedy=_REMEDY)
    if value.get("version") != VERSION:
        raise InputError(f"{path} was not written by this version of img2img: choose another folder (out=...)")
    return as_model(Progress, value, str(path), remedy=_REMEDY)
