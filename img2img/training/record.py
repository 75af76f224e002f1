"""What a run's tasks were learned from: the files, by name and content, so that changed data is never taken for the same.

`RUN/data/TASK.json` is written before anything is learned. It binds a run once the task is finished or has a checkpoint: its
metrics, its parameters and the split into parts are of those files. Where they lie, and when they were copied, does not count.
"""

import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Strict

from img2img.data.base import PARTS, ImageDataset
from img2img.data.checksums import FileChanges, FileChecksum, combined_digest, file_changes, file_checksums
from img2img.errors import InputError
from img2img.files.atomic import write_bytes
from img2img.files.json_files import read_json
from img2img.files.paths import expanded, paths_in
from img2img.training.config import Experiment
from img2img.training.strategy import TaskData
from img2img.validation import Stored, as_model

logger = logging.getLogger("img2img")

OPTIONS = "options"
"""Stands in the place of a part for files that options name."""
CLASSES = f"{OPTIONS}/names of the classes"
"""Stands among the files for the names that the labels have, which may come from a list."""


def read_now(
    parts: Mapping[str, ImageDataset], options: Mapping[str, Any] | None = None, known: Mapping[str, FileChecksum] | None = None
) -> dict[str, FileChecksum]:
    """The files that parts of a dataset are read from, and those that options name, as they are now.

    Args:
        parts: by name, which becomes the first piece of the files' names.
        options: of the task, its data and so on: a value that is a file's path stands for that file.
        known: as of `file_checksums`.
    """
    found: dict[str, Path] = {}
    for part, images in parts.items():
        for name, path in images.common_files():
            found[_key(part, name)] = path
        # Arrays and made sets have hundreds of tasks of many samples, none of which has a file.
        for index in range(len(images)) if len(images) and images.files(0) else ():
            for name, path in images.files(index):
                found[_key(part, name)] = path
    # Unlike `Path.is_file` this takes any text.
    found |= {f"{OPTIONS}/{name}": path for name, path in paths_in(options or {}) if os.path.isfile(path)}
    made = file_checksums(found.items(), known)
    classes = next((images.classes for images in parts.values()), ())
    if made and classes:
        made[CLASSES] = FileChecksum(len(classes), 0, hashlib.sha256(json.dumps(classes).encode()).hexdigest())
    return made


def _key(part: str, name: str) -> str:
    return f"{part}/{unicodedata.normalize('NFC', name)}"  # a copy on another system may spell accents otherwise


class _RecordFile(Stored):
    """`RUN/data/TASK.json`: of each file its bytes, the time of its last change and its digest."""

    files: dict[str, Annotated[tuple[int, int, str], Strict(False)]]


def read_record(path: Path) -> dict[str, FileChecksum] | None:
    """The stamps in a record; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return None
    remedy = "restore it, or delete it to take the data as it is now for that which the task was learned from"
    files = as_model(_RecordFile, read_json(path), str(path), remedy=remedy).files
    return {name: FileChecksum(*stamp) for name, stamp in files.items()}


def write_record(path: Path, found: Mapping[str, FileChecksum]) -> None:
    """Write a record, a line a file."""
    lines = (f"{json.dumps(name)}: {json.dumps(stamp)}" for name, stamp in found.items())
    content = ['{"digest": ', json.dumps(combined_digest(found)), ',\n"files": {\n', ",\n".join(lines), "\n}}\n"]
    write_bytes(path, "".join(content).encode())


class Records:
    """The records of one run.

    Args:
        experiment: the run's.
        folder: where the run is now, if not in the experiment's folder.
    """

    def __init__(self, experiment: Experiment, folder: Path | None = None) -> None:
        self._experiment = experiment
        self._folder = experiment.folder if folder is None else folder
        self._now: dict[str, dict[str, FileChecksum]] = {}
        self._remarks: list[str] = []
        self._digests: dict[str, str | None] = {}

    def path(self, name: str) -> Path:
        """The record of a task."""
        return self._folder / "data" / f"{name}.json"

    def now(self, task_data: TaskData) -> dict[str, FileChecksum]:
        """The files of a task, as they were when this was first asked."""
        name = task_data.name
        if name not in self._now:
            self._now[name] = self._read(task_data, read_record(self.path(name)))
        return self._now[name]

    def difference(self, task_data: TaskData, parts: Sequence[str] = PARTS) -> FileChanges | None:
        """What has changed since the task was learned, in some parts and in the options; None where the run kept no record."""
        before = read_record(self.path(task_data.name))
        if before is None:
            return None
        if set(parts) == set(PARTS):
            return file_changes(before, self.now(task_data))
        before = {name: stamp for name, stamp in before.items() if name.partition("/")[0] in (*parts, OPTIONS)}
        return file_changes(before, self._read(task_data, before, parts))

    def check(self, task_data: Mapping[str, TaskData], finished: Mapping[str, Any]) -> None:
        """Refuse data that is not what the run's tasks were learned from; nothing is written.

        Raises:
            InputError: it has changed, and `resume` is not "anyway".
        """
        for name in self._bound(finished):
            changed = self.difference(task_data[name])
            if changed is None and self.now(task_data[name]):
                self._remarks.append(f"{name}: an earlier version kept no list of the files it read; they are taken as they are")
            elif changed and self._experiment.resume == "anyway":
                self._remarks.append(f"{name}: its files have changed since it was learned: {changed}")
            elif changed:
                raise InputError(
                    f"{self._experiment.folder} learned {name!r} from other files than there are now: {changed}. Its metrics and "
                    "parameters are of the earlier ones: bring those back; or learn from the new ones in another folder "
                    "(out=...), or in this one after deleting it; or keep what was learned and go on with resume=anyway"
                )
        first = self._experiment.sequence[0]
        if self._experiment.backbone_from is not None and first not in finished:
            self._check_first(task_data[first], expanded(self._experiment.backbone_from))

    def _check_first(self, task_data: TaskData, source: Path) -> None:
        theirs = read_record(source / "data" / f"{task_data.name}.json")
        if theirs is None:
            return
        self._now[task_data.name] = self._read(task_data, theirs)
        changed = file_changes(theirs, self._now[task_data.name])
        if not changed:
            return
        what = f"backbone_from={source}: its first task {task_data.name!r} was learned from other files than are here: {changed}"
        if self._experiment.resume != "anyway":
            raise InputError(
                f"{what}; give a run of the same files, train that one anew, leave backbone_from out, or take it nevertheless "
                "with resume=anyway"
            )
        self._remarks.append(what)

    def keep(self, task_data: Mapping[str, TaskData]) -> None:
        """Write the records of all tasks, where they are not there already as they are, and log what `check` let pass."""
        for remark in self._remarks:
            logger.warning("%s", remark)
        for name, task in task_data.items():
            found = self.now(task)
            if found != (read_record(self.path(name)) or {}):
                write_record(self.path(name), found)
            self._digests[name] = combined_digest(found)
            del self._now[name]  # a million files take much memory

    def digest(self, name: str) -> str | None:
        """A hash of the files of a task, after `keep`, the same wherever they lie; None where its images are made."""
        return self._digests[name]

    def _bound(self, finished: Mapping[str, Any]) -> list[str]:
        """The tasks on whose data something depends that is in the folder."""
        checkpoints = {path.name.partition(".")[0] for path in (self._experiment.folder / "checkpoints").glob("*.pt")}
        begun = [name for name in self._experiment.sequence if name in finished or name in checkpoints]
        together = self._experiment.strategy.builder.learns_together
        return list(self._experiment.sequence) if begun and together else begun

    def _read(
        self, task_data: TaskData, known: Mapping[str, FileChecksum] | None, parts: Sequence[str] = PARTS
    ) -> dict[str, FileChecksum]:
        config, backbone = task_data.config, self._experiment.backbone
        options = {"task": config.task.plain(), "data": config.data.plain(), "backbone": backbone.given()}
        if config.finetuned is not None:
            options["finetuned"] = config.finetuned.model_dump()
        return read_now({part: getattr(task_data.parts, part) for part in parts}, options, known)
