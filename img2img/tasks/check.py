"""The contract of a kind of task and of a dataset, checked on two samples before any training."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from img2img.data.base import Batch, ImageDataset, Sample, check_sample
from img2img.errors import InputError
from img2img.tasks.base import TASKS, Example, Metrics, Task
from img2img.validation import call_with
from img2img.validation.messages import did_you_mean

_SIDE = 64
"""Pixels of a side that the samples are cut to, so that the check takes milliseconds."""
_SLACK = 1e-3


def check_task(task: Task, images: ImageDataset) -> None:
    """Check that a kind of task and a dataset keep their contracts, and go together, on two samples and without a network.

    Every training of a kind of one's own begins with it. It says at once what would else be found after hours, or never, such as
    a prediction of one channel that is silently compared with a target of three. See `check_samples` for the others.

    Args:
        task: built; `task.fit` has been called on the training images.
        images: the training images.

    Raises:
        InputError: names what the task or the dataset gave, what was expected, and what to do.
    """
    _check_class(task)
    with torch.random.fork_rng(devices=[]):  # a training draws the same numbers, whether or not it was checked
        example = check_samples(task, images)
        form = (len(example.input), task.out_channels)
        raw = torch.zeros(form if task.image_level else (*form, *example.input.shape[-2:]), dtype=example.input.dtype)
        with torch.no_grad():
            prediction = task.prediction(raw, example.input)
            _check_like_target(task, "prediction", prediction, example.target)
            _check_like_target(task, "baseline", task.baseline(example), example.target)
        _check_loss(task, raw, example)
        with torch.no_grad():
            _check_metrics(task, "metrics", task.metrics(), prediction, example)
            _check_metrics(task, "primary_metrics", task.primary_metrics(), prediction, example)
            _check_images(task, prediction, example)
    _check_options(task)


def check_samples(task: Task, images: ImageDataset) -> Example:
    """Check that a dataset gives samples as it should, on two of them, and a task what a network is fed; returns that.

    Raises:
        InputError: as `check_task`.
    """
    with torch.random.fork_rng(devices=[]):
        return _example(task, _samples(images))


def primary_value(task: Task, metrics: Mapping[str, float]) -> float:
    """The primary metric of a task among all that were measured.

    Raises:
        InputError: it is not among them.
    """
    if task.metric in metrics:
        return metrics[task.metric]
    near = next((repr(name) for name in metrics if name.lower() == str(task.metric).lower()), None)
    question = did_you_mean(str(task.metric), list(metrics)) if near is None else f"did you mean {near}? "
    raise InputError(
        f"the primary metric of the {task.kind} task is {task.metric!r}, and its metrics compute {', '.join(metrics) or 'none'}: "
        f"expected one of these; {question}correct metric of {type(task).__name__}, or let "
        "metrics() compute it"
    )


def _of(task: Task) -> str:
    return f"the {task.kind} task ({type(task).__name__})"


def _shown(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_class(task: Task) -> None:
    TASKS.check_registered(type(task))
    for name, sort, example in (("metric", str, "'MSE'"), ("higher_is_better", bool, "False"), ("baseline_name", str, "'copy'")):
        value = getattr(task, name, None)
        if not isinstance(value, sort):
            raise InputError(f"{_of(task)} has {name}={value!r}: expected for instance {example}; set it in the class")
    channels = getattr(task, "out_channels", None)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise InputError(
            f"{_of(task)} has out_channels={channels!r}: expected 1 or more, a whole number, what the head gives for each "
            "pixel; set it in the class or in its constructor"
        )


def _samples(images: ImageDataset) -> list[Sample]:
    """Two samples, cut to one size from their top left corners."""
    if not len(images):
        raise InputError(f"the dataset {images.name!r} is empty: expected one image or more; check where it reads from")
    samples = [images[index] for index in (0, len(images) // 2)]
    for sample in samples:
        check_sample(sample, images.name)
    return samples


def _example(task: Task, samples: list[Sample]) -> Example:
    side = max(_SIDE, task.smallest_crop)
    height, width = (min(side, *(sample.image.shape[axis] for sample in samples)) for axis in (0, 1))

    def cut(array: Any) -> Any:
        return None if array is None else array[:height, :width]

    batch = Batch.stack([replace(s, image=cut(s.image), label=cut(s.label), source=cut(s.source)) for s in samples])
    example = task.example(batch)
    _check_input(task, "input", example.input, batch)
    try:
        served = task.served_input(Batch(image=batch.image))
    except InputError as error:
        raise InputError(
            f"served_input of {_of(task)} cannot do with the image alone ({error}): expected that it does, since a task that is "
            "used has no labels and no pairs; override it"
        ) from error
    _check_input(task, "served_input", served, batch)
    if not isinstance(example.target, Tensor):
        raise InputError(f"target of {_of(task)} gave {_shown(example.target)}: expected a tensor; make one of it")
    return example


def _check_input(task: Task, what: str, input: Any, batch: Batch) -> None:
    wanted = (len(batch), 3, *batch.image.shape[-2:])
    if not isinstance(input, Tensor) or tuple(input.shape) != wanted or not input.is_floating_point():
        raise InputError(
            f"{what} of {_of(task)} gave {_shown(input)} for images of {tuple(batch.image.shape)}: expected {wanted} float in "
            "[0, 1]; img2img.tasks.base.unit(batch.image) makes that of images"
        )
    low, high = float(input.min()), float(input.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN too
        raise InputError(
            f"{what} of {_of(task)} gave values from {low:.4g} to {high:.4g}: expected them in [0, 1], which the backbone "
            "normalises itself; img2img.tasks.base.unit(batch.image) divides by 255, clamp(0, 1) cuts what is beyond"
        )


def _check_loss(task: Task, raw: Tensor, example: Example) -> None:
    with torch.enable_grad():
        loss = task.loss(raw.requires_grad_(), example)
    raw.requires_grad_(False)
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise InputError(
            f"loss of {_of(task)} gave {_shown(loss)}: expected a scalar tensor, () float, the mean over the batch; end it with "
            ".mean()"
        )
    if not loss.requires_grad:
        raise InputError(
            f"loss of {_of(task)} has no gradient by the raw output: expected one, or nothing is learned; leave out detach(), "
            "no_grad() and whatever rounds"
        )


def _check_like_target(task: Task, what: str, found: Any, target: Tensor) -> None:
    """Refuse what would be broadcast against the target; class indices are compared with scores of another form."""
    if not isinstance(found, Tensor):
        raise InputError(f"{what} of {_of(task)} gave {_shown(found)}: expected a tensor in the target's form; make one of it")
    if target.is_floating_point() and found.shape != target.shape:
        raise InputError(
            f"{what} of {_of(task)} has the form {tuple(found.shape)}, and target {tuple(target.shape)}: expected one form, or "
            "loss and metrics silently compare each value with several; give both the same channels"
        )
    if not found.ndim or len(found) != len(target):
        raise InputError(
            f"{what} of {_of(task)} has the form {tuple(found.shape)} for {len(target)} images: expected one an image; "
            "keep the batch axis"
        )


def _check_metrics(task: Task, what: str, metrics: Metrics, prediction: Tensor, example: Example) -> None:
    metrics.update(prediction, example)
    values = metrics.compute()
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            remedy = "give value.item()" if getattr(value, "size", None) is not None else "give a number"
            raise InputError(
                f"{what} of {_of(task)} computed {_shown(value)} as {name!r}: expected a number, float or int; {remedy}"
            )
    primary_value(task, values)


def _check_images(task: Task, prediction: Tensor, example: Example) -> None:
    made = {
        "to_image of a prediction": task.to_image(prediction, example.input),
        "reference": task.reference(example),
    }
    for form in task.forms:
        shown = task.show(prediction, example.input, form)
        if form not in ("labels", "scores"):
            made[f"show with form={form!r}"] = shown
    for what, image in made.items():
        count = len(example.input)
        if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[:2] != (count, 3) or not image.is_floating_point():
            grey = isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == 1
            remedy = ".expand(-1, 3, -1, -1) makes three channels of one" if grey else "correct it"
            raise InputError(
                f"{what} of {_of(task)} gave {_shown(image)}: expected images ({count}, 3, height, width) float in [0, 1]; "
                f"{remedy}"
            )
        low, high = float(image.min()), float(image.max())
        if low < -_SLACK or high > 1 + _SLACK or math.isnan(low + high):
            raise InputError(
                f"{what} of {_of(task)} gave values from {low:.4g} to {high:.4g}: expected images in [0, 1]; scale them, and cut "
                "what is beyond by clamp(0, 1)"
            )


def _check_options(task: Task) -> None:
    """Refuse options that a task's file cannot hold, or that make another task."""
    options = task.options()
    if not isinstance(options, Mapping) or options.get("kind") != task.kind:
        got = dict(options) if isinstance(options, Mapping) else options
        raise InputError(
            f"options of {_of(task)} gave {got!r}: expected 'kind': {task.kind!r} among them; add \"kind\": self.kind"
        )
    try:
        plain = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"options of {_of(task)} gave {dict(options)!r}, which a task's file cannot hold ({error}): expected plain values; "
            "give text, numbers, true, false, None, lists and dicts"
        ) from error
    again = call_with(type(task), {k: v for k, v in plain.items() if k != "kind"}, what=f"options() of {_of(task)}")
    if json.loads(json.dumps(again.options())) != plain:
        raise InputError(
            f"{_of(task)} has the options {plain}, and the task that is built of them {again.options()}: expected the same; let "
            "options() give all that the constructor was given"
        )
