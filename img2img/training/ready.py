"""A task made ready: its data opened, and what of it cannot work said before hours of training."""

import math
from collections.abc import Iterator

import torch

from img2img.backbones import Backbone
from img2img.data import build_data
from img2img.errors import InputError
from img2img.tasks import build_task, task_class
from img2img.training.experiment import Experiment
from img2img.training.learners import Ready

_NAMED = 5
"""Classes that a remark names; of more it says how many."""


def prepare(experiment: Experiment, name: str) -> Ready:
    """A task of an experiment with its data, opened.

    Raises:
        InputError: an option, or data that is missing or cannot be used.
    """
    config = experiment.task(name)
    parts = build_data(config.data)
    options = dict(config.task)
    kind = task_class(options.get("kind"))
    if kind.has_classes and "classes" not in options:
        options["classes"] = list(parts.classes)
    if kind.has_square:
        options["square"] = config.data.get("square") is not None
    task = build_task(options)
    task.fit(parts.train)
    return Ready(name, task, parts, experiment.train_options(name).in_steps(len(parts.train)))


@torch.no_grad()
def check_output(ready: Ready, backbone: Backbone) -> None:
    """Refuse a task that wants one answer for a picture on a backbone with one for each pixel, or the other way round.

    The backbone is asked, on an empty picture: one of a user's own need not say what it is.

    Raises:
        InputError: they do not go together.
    """
    side = math.ceil(max(backbone.min_size, 1) / backbone.stride) * backbone.stride
    training = backbone.training
    raw = backbone.eval()(torch.zeros(1, 3, side, side, dtype=backbone.mean.dtype, device=backbone.mean.device))
    backbone.train(training)
    wanted, given = ready.task.whole_picture, raw.ndim == 2
    if wanted != given:
        answers = {False: "one answer for each pixel", True: "one answer for a whole picture"}
        remedies = {False: "an encoder-decoder, such as backbone=lite0_unet", True: "a classifier, such as backbone=resnet18"}
        raise InputError(
            f"tasks.{ready.name} is of the kind {ready.task.kind!r}, with {answers[wanted]}, and the backbone "
            f"{backbone.spec['kind']!r} gives {answers[given]}: choose {remedies[wanted]}"
        )


def remarks(ready: Ready) -> Iterator[str]:
    """What a user would want to know of a task's data before it is learned, though it can be."""
    categories = ready.parts.train.categories
    if categories is None or not ready.task.whole_picture:
        return
    seen = set(categories.tolist())
    unseen = [name for index, name in enumerate(ready.parts.classes) if index not in seen]
    if unseen:
        more = f" and {len(unseen) - _NAMED} more" if len(unseen) > _NAMED else ""
        yield f"no training picture of {', '.join(unseen[:_NAMED])}{more}: such classes cannot be learned"
