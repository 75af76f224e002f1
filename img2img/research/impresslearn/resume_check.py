"""What a study's folder holds already: results that a study may add to, and never replace by others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from img2img.data.checksums import FileChecksum, file_changes
from img2img.errors import InputError
from img2img.files.atomic import check_folder
from img2img.files.json_files import read_json
from img2img.research.impresslearn.numbered_tasks import NumberedTasks
from img2img.research.impresslearn.options import Study, read_study
from img2img.training.record import read_now, read_record

_AT_LEAST = {"new_tasks", "basis_tasks", "wrong_masks"}
"""Numbers that may rise."""
_CONTAINS = {"seeds", "densities", "counts", "kinds", "inference.epochs", "variants.counts"}
"""Lists that may get longer: each value is a measurement of its own."""
_FREE = {"name", "out", "threads", "train.together"}
"""What changes no result, or by rounding alone."""


def check_earlier(folder: Path, study: Study) -> None:
    """Refuse a study that would replace the results in its folder, by those of other options or by fewer of them.

    Raises:
        InputError: the folder is a file, holds a run of another pipeline, or results of another study.
    """
    check_folder(folder, "out")
    if (folder / "progress.json").is_file():
        raise InputError(
            f"{folder} holds a run of another pipeline, whose results a study would replace: choose another folder (out=...)"
        )
    if not (folder / "results.json").is_file():
        return
    earlier = _read(folder / "results.json", study)
    wanted = dict(_options(study))
    for name, value in _options(earlier):
        if not _kept(name, value, wanted[name]) and name.split(".")[0] not in _unmeasured(earlier):
            raise InputError(
                f"{folder} holds results of a study with {name}={value}, which one with {name}={wanted[name]} "
                "would replace: give what the folder has and add to it, or choose another folder (out=...)"
            )


def check_images(folder: Path, family: NumberedTasks) -> dict[str, FileChecksum]:
    """Refuse images that are not those from which the study in the folder was made; gives what is to be kept of them.

    Raises:
        InputError: they have changed.
    """
    path = record_path(folder)
    before = read_record(path)
    now = read_now(family.sets(), known=before)
    changed = None if before is None else file_changes(before, now)
    if changed and any(folder.glob("seed*/*/*")):
        raise InputError(
            f"{folder} holds a study of other files than there are now: {changed}. What it learned is of the earlier ones: bring "
            "those back, choose another folder (out=...), or delete this one to learn all anew"
        )
    return now


def record_path(folder: Path) -> Path:
    """The file that says which files a study reads."""
    return folder / "data" / "images.json"


def _read(path: Path, study: Study) -> Study:
    """The study whose results are in the file; they do not say where its data was."""
    results = read_json(path)
    options = results.get("study") if isinstance(results, Mapping) else None
    data = results.get("data") if isinstance(results, Mapping) else None
    try:
        if not isinstance(options, Mapping) or not isinstance(data, Mapping):
            raise InputError("it describes no study")
        return read_study({**options, "out": study.out, "data": data})
    except InputError as error:
        raise InputError(
            f"{path} was not written by a study of this version of img2img ({error}): choose another folder (out=...)"
        ) from error


def _options(study: Study) -> Iterator[tuple[str, Any]]:
    """The options by name, such as `train.lr`."""
    for name, value in vars(study).items():
        if name == "data":
            yield name, {key: item for key, item in value.items() if key != "root"}
        elif name in ("train", "inference", "variants"):
            yield from ((f"{name}.{key}", item) for key, item in vars(value).items())
        else:
            yield name, list(value) if isinstance(value, tuple) else value  # a default, where a config has a list


def _kept(name: str, earlier: Any, wanted: Any) -> bool:
    """Whether results with the earlier value stay with the wanted one."""
    if name in _FREE:
        return True
    if name in _AT_LEAST:
        return bool(wanted >= earlier)
    if name in _CONTAINS:
        return set(earlier) <= set(wanted)
    return bool(earlier == wanted)


def _unmeasured(study: Study) -> set[str]:
    """The groups of options that the study measured nothing with."""
    measured = {"inference": study.inference.tasks, "variants": len(study.variants.counts)}
    return {name for name, count in measured.items() if not count}
