"""`progress.json`: which tasks of a run are finished, with their figures; what a later run goes on from."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.files import check_folder, read_json, write_json
from img2img.training.experiment import Experiment


def _fresh() -> dict[str, Any]:
    # backbone: the fingerprint of its training; tasks and decoder_only: an entry a task; rows and changes: an entry after each;
    # environment: what the last of them was measured on.
    entries = {"tasks": {}, "decoder_only": {}, "shared_bytes": 0, "rows": [], "changes": []}
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
    for name in finished:
        if progress["fingerprints"].get(name) not in experiment.fingerprints(name):
            raise InputError(
                f"{experiment.folder} holds a run that learned {name!r} under another configuration: go back to it, or choose "
                "another folder (out=...)"
            )
    return progress


def write_progress(experiment: Experiment, progress: dict[str, Any]) -> None:
    """Write `progress.json`, atomically, with the fingerprints of the finished tasks."""
    fingerprints = {name: experiment.fingerprint(name) for name in progress["tasks"]}
    backbone = experiment.fingerprint(experiment.sequence[0], backbone=True) if experiment.mode == "first_task" else None
    write_json(experiment.folder / "progress.json", progress | {"fingerprints": fingerprints, "backbone": backbone})


def _read(path: Path) -> dict[str, Any]:
    progress = read_json(path)
    if not isinstance(progress, dict) or progress.keys() != _fresh().keys():
        raise InputError(f"{path} was not written by this version of img2img: choose another folder (out=...)")
    return progress


def source_of_backbone(source: Path, first: str, fingerprints: Collection[str]) -> dict[str, Any]:
    """The entry of the first task of another run, whose backbone is to be used here.

    Raises:
        InputError: there is no such run, or its first task was learned under another configuration.
    """
    path = source / "progress.json"
    if not path.is_file():
        raise InputError(f"first_from={source} holds no run: expected progress.json there; give the folder of one with {first!r}")
    progress = _read(path)
    if progress["backbone"] not in fingerprints or first not in progress["tasks"]:
        raise InputError(
            f"first_from={source}: its first task was learned under another configuration than {first!r} here; give one with the "
            "same first task, backbone, steps and seed, or leave first_from out"
        )
    entry: dict[str, Any] = progress["tasks"][first]
    return entry
