"""A task with its data opened, and whatever cannot work found before hours of training."""

import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from img2img.backbones import Backbone
from img2img.bundle import read_bundle, same_backbone
from img2img.data import VOID, ImageDataset
from img2img.errors import InputError, memory_explained
from img2img.files.paths import paths_in
from img2img.metrics.sequence import skill_or_none
from img2img.tasks import TASKS, check_samples, check_task
from img2img.training.config import Experiment, TaskConfig
from img2img.training.strategy import TaskData

logger = logging.getLogger("img2img")

_NAMED = 5
"""Classes that a remark names; of more it says how many."""
_READ = 1000
"""Images whose labels are looked at for classes that do not occur."""


def prepare(experiment: Experiment, config: TaskConfig) -> TaskData:
    """A task of an experiment with its data, opened.

    Raises:
        InputError: data that is missing or cannot be used.
        OutOfMemoryError: the images do not fit into memory.
    """
    name = config.name
    remedy = f"make them smaller with tasks.{name}.data.resize, or take fewer with tasks.{name}.data.limit"
    with memory_explained(f"while the images of {name!r} were read", remedy):
        parts = config.data.build(exclude=[experiment.folder], cache=experiment.image_cache())
        kind = config.task.builder
        more: dict[str, object] = {}
        if kind.has_classes and "classes" not in config.task.options:
            more["classes"] = list(parts.classes)
        if kind.has_square:
            more["square"] = config.data.options.get("square") is not None
        task = config.task.build(**more)
        crop = config.train.augmentation.crop
        if crop < task.smallest_crop:
            raise InputError(
                f"tasks.{name} is trained on crops of {crop} px, and its loss needs {task.smallest_crop} at least: raise "
                f"tasks.{name}.train.augmentation.crop, or lower tasks.{name}.task.loss.gan.receptive_field"
            )
        task.fit(parts.train)
    return TaskData(config, task, parts, config.train.in_steps(len(parts.train)))


def check_tasks(tasks: Iterable[TaskData], backbone: Backbone, *, of_bundle: bool, finished: Collection[str]) -> None:
    """Refuse tasks that cannot be learned on a backbone, or whose kind or data is not as it should be, before any training.

    Args:
        tasks: with their data.
        backbone: what they are learned on.
        of_bundle: whether it is that of a bundle, which cannot be changed.
        finished: the names of those that were learned already: their kinds and data were checked then.

    Raises:
        InputError: see `check_output`, `check_crop` and `tasks.check_task`.
    """
    for task_data in tasks:
        check_output(task_data, backbone, of_bundle=of_bundle)
        if task_data.name not in finished:
            check_crop(task_data, backbone)
            check = check_samples if TASKS.has_own(task_data.task.kind) else check_task
            check(task_data.task, task_data.parts.train)


def check_crop(task_data: TaskData, backbone: Backbone) -> None:
    """Refuse training crops of a side that the backbone does not take.

    Raises:
        InputError: names the sides next to it that it takes.
    """
    crop, stride = task_data.options.augmentation.crop, backbone.stride
    smallest = math.ceil(max(backbone.min_size, 1) / stride) * stride
    above = max(smallest, math.ceil(crop / stride) * stride)
    if above == crop:
        return
    sides = [side for side in (above - stride, above) if side >= smallest]
    least = f"multiples of {stride}, {smallest} at least" if stride > 1 else f"{smallest} at least"
    raise InputError(
        f"tasks.{task_data.name} has train.augmentation.crop={crop}: the backbone takes {least}; give "
        f"{' or '.join(map(str, sides))}"
    )


def check_names(experiment: Experiment, finished: Collection[str]) -> None:
    """Refuse to learn a task that the bundle of the backbone has already.

    Raises:
        InputError: it has, and the run has not learned it.
    """
    source = experiment.backbone.source
    taken = [] if source is None else [name for name in experiment.sequence if name in source.tasks and name not in finished]
    if source is not None and taken:
        raise InputError(f"{source.folder} has a task {taken[0]!r} already: give the new one another name")


def check_own_bundle(
    folder: Path, sequence: Sequence[str], *, learned: Collection[str], backbone: Mapping[str, Any] | None
) -> None:
    """Refuse to replace what something else has put into the run's own bundle.

    Args:
        folder: the run folder.
        sequence: the tasks of the run.
        learned: those that it has learned, whether or not `progress.json` says so yet.
        backbone: what `describe_backbone` says of the one that the run is to write there; None where it keeps the one that is
            there, or does not know it yet.

    Raises:
        InputError: the bundle is damaged, has a task of the same name, or tasks on another backbone.
    """
    bundle = folder / "bundle"
    if not (bundle / "bundle.json").is_file():
        return
    description = read_bundle(bundle)
    others = [name for name in description["tasks"] if name not in learned]
    if taken := [name for name in sequence if name in others]:
        raise InputError(
            f"{bundle} has a task {taken[0]!r} already that this run has not learned, but add-task or join put there: give the "
            "new one another name, or delete that one first (img2img tasks delete)"
        )
    if others and backbone is not None and not same_backbone(description, backbone):
        raise InputError(
            f"{bundle} has the tasks {', '.join(others)}, which this run has not learned, on another backbone than the run's, "
            "or another selection of its weights: they would be lost; choose another folder (out=...)"
        )


def check_folders(experiment: Experiment) -> None:
    """Refuse data that lies in the run folder itself: the run's own images would be among it at the next start.

    A run folder within the data, or data in a folder of its own within the run folder, is fine.

    Raises:
        InputError: an option of a task's data is the run folder.
    """
    own = os.path.realpath(experiment.folder)
    for task in experiment.tasks:
        for option, path in paths_in(task.data.plain()):
            if os.path.realpath(path) == own:
                raise InputError(
                    f"tasks.{task.name}.data.{option}={path} is the folder that the run writes to (out={experiment.out}): "
                    "expected another, since its results would be read as images; choose another out, such as a new folder in it"
                )


@torch.no_grad()
def check_output(task_data: TaskData, backbone: Backbone, *, of_bundle: bool = False) -> None:
    """Refuse a task that wants one answer for an image on a backbone with one for each pixel, or the other way round.

    The backbone is asked, on an empty image: one of a user's own need not say what it is. That `of_bundle` cannot be changed.

    Raises:
        InputError: they do not go together.
    """
    side = math.ceil(max(backbone.min_size, 1) / backbone.stride) * backbone.stride
    training = backbone.training
    raw = backbone.eval()(torch.zeros(1, 3, side, side, dtype=backbone.mean.dtype, device=backbone.mean.device))
    backbone.train(training)
    wanted, given = task_data.task.image_level, raw.ndim == 2
    if wanted != given:
        answers = {False: "one answer for each pixel", True: "one answer for a whole image"}
        remedies = {False: "an encoder-decoder, such as backbone=lite0_unet", True: "a classifier, such as backbone=resnet18"}
        remedy = f"choose {remedies[wanted]}"
        if of_bundle:
            networks = {False: "an encoder-decoder", True: "a classifier"}
            remedy = f"the backbone of a bundle is fixed; give a bundle whose backbone is {networks[wanted]}"
        raise InputError(
            f"tasks.{task_data.name} is of the kind {task_data.task.kind!r}, with {answers[wanted]}, and the backbone "
            f"{backbone.spec['kind']!r} gives {answers[given]}: {remedy}"
        )


def remarks(task_data: TaskData) -> Iterator[str]:
    """What a user would want to know of a task's data before it is learned, though it can be."""
    yield from task_data.parts.train.warnings()
    if not task_data.task.has_classes:
        return
    what = "image" if task_data.task.image_level else "pixel"
    names = getattr(task_data.task, "classes", task_data.parts.classes)
    for part, images, follows in (
        ("training", task_data.parts.train, "such classes cannot be learned"),
        ("test", task_data.parts.test, "how well they were learned is not measured"),
    ):
        seen, void = _seen(images, len(names), whole=task_data.task.image_level)
        unseen = [name for index, name in enumerate(names) if index not in seen]
        if seen and unseen:
            more = f" and {len(unseen) - _NAMED} more" if len(unseen) > _NAMED else ""
            among = "" if task_data.task.image_level or len(images) <= _READ else f" in {_READ} images, evenly spread"
            yield f"no {part} {what} of {', '.join(unseen[:_NAMED])}{more}{among}: {follows}"
        if len(seen) == 1 and part == "test":
            yield "the test part has a single class, so that the baseline is perfect there: the task has no skill"
        if void and len(seen) == 1:
            yield f"the labels of the {part} part hold {names[next(iter(seen))]} and {VOID} alone, which is void: is it a class?"


def tell_result(task_data: TaskData, value: float, baseline: float, changes: Mapping[str, float], *, cannot_forget: bool) -> None:
    """Log the primary metric of a task on its test set beside its baseline; warn where doing nothing would have been as good,
    and where the outputs of an earlier task changed that cannot be forgotten.

    A metric without a best value, such as PSNR, has no skill, and nothing is warned of.

    Args:
        task_data: of the task.
        value: its primary metric.
        baseline: likewise, of its baseline.
        changes: the largest changes of earlier tasks' outputs, by task.
        cannot_forget: whether all of these must be 0.
    """
    task = task_data.task
    logger.info("%s: %s %.4g (%s %.4g)", task_data.name, task.metric, value, task.baseline_name, baseline)
    found = skill_or_none(value, baseline, higher_is_better=task.higher_is_better)
    if found is not None and found <= 0:
        logger.warning(
            "%s: no better than its baseline, %s: it has learned nothing of use; train it longer, or look at its data and rates",
            task_data.name, task.baseline_name,
        )  # fmt: skip
    if changes:
        logger.info("%s: largest change of an output %g", ", ".join(changes), max(changes.values()))
    changed = [name for name, change in changes.items() if change != 0]
    if cannot_forget and changed:
        logger.warning(
            "the outputs of %s are not those that were stored when it was learned: expected them bit for bit; another kind of "
            "processor, number of threads or version of torch than then changes them by rounding alone; if it is the same, "
            "this is a bug in img2img, please report it",
            ", ".join(changed),
        )


def _seen(images: ImageDataset, classes: int, *, whole: bool) -> tuple[set[int], bool]:
    """Which of so many classes occur in a set, and whether void does too, where not all do.

    Of labels those of `_READ` images at most are read, the same ones as `Segmentation.fit` reads, until all were seen.
    """
    if whole:
        categories = images.categories
        return (set() if categories is None else set(categories[categories >= 0].tolist())), False
    found = np.zeros(VOID + 1, dtype=bool)
    read = min(len(images), _READ)
    for i in range(read):
        if found[:classes].all():
            break
        label = images[i * len(images) // read].label
        if label is not None:
            found[np.bincount(label.ravel(), minlength=VOID + 1).astype(bool)] = True
    return set(np.flatnonzero(found[:VOID]).tolist()), bool(found[VOID])
