"""`progress.json`: which tasks of a run are finished, with their figures; what a later run goes on from."""

from typing import Any

from img2img.errors import InputError
from img2img.files import read_json, write_json
from img2img.training.experiment import Experiment


def _fresh() -> dict[str, Any]:
    # tasks and decoder_only: an entry a task; rows and changes: an entry after each task.
    return {"fingerprints": {}, "tasks": {}, "decoder_only": {}, "rows": [], "changes": []}


def read_progress(experiment: Experiment) -> dict[str, Any]:
    """What the run folder's earlier run finished; nothing, if there was none.

    Raises:
        InputError: the folder holds a run of another configuration, or `resume` is "never" and it holds any.
    """
    path, fresh = experiment.folder / "progress.json", _fresh()
    if not path.is_file():
        return fresh
    if experiment.resume == "never":
        raise InputError(f"{experiment.folder} holds a run already: choose another folder (out=...) or go on with resume=auto")
    progress = read_json(path)
    if not isinstance(progress, dict) or progress.keys() != fresh.keys():
        raise InputError(f"{path} was not written by this version of img2img: choose another folder (out=...)")
    finished, wanted = list(progress["tasks"]), list(experiment.sequence)
    if finished != wanted[: len(finished)]:
        raise InputError(
            f"{experiment.folder} holds a run that learned {finished}, the config asks for {wanted}: a sequence can grow at its "
            "end, but not change what was learned; choose another folder (out=...)"
        )
    for name in finished:
        if progress["fingerprints"].get(name) != experiment.fingerprint(name):
            raise InputError(
                f"{experiment.folder} holds a run that learned {name!r} under another configuration: go back to it, or choose "
                "another folder (out=...)"
            )
    return progress


def write_progress(experiment: Experiment, progress: dict[str, Any]) -> None:
    """Write `progress.json`, atomically, with the fingerprints of the finished tasks."""
    fingerprints = {name: experiment.fingerprint(name) for name in progress["tasks"]}
    write_json(experiment.folder / "progress.json", progress | {"fingerprints": fingerprints})
