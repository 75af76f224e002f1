"""The quality of a bundle's task on labelled images of the user's own."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from img2img import validation
from img2img.data.base import DATA, ImageDataset
from img2img.data.spec import DataSpec
from img2img.errors import InputError, memory_explained
from img2img.inference.evaluator import Evaluator, finite
from img2img.inference.model import Model
from img2img.inference.opening import load
from img2img.tasks import Task, build_task
from img2img.validation.arguments import shown

if TYPE_CHECKING:
    from img2img.metrics.perceptual import PerceptualMetrics

logger = logging.getLogger("img2img")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a task reaches on a set of images.

    Attributes:
        primary_metric: the name of the metric that decides comparisons.
        metrics: all metrics by name, None where one has no value.
        baseline: those of the task's trivial baseline on the same images, such as their majority class or the input itself.
        images: how many were measured.
    """

    primary_metric: str
    metrics: Mapping[str, float | None]
    baseline: Mapping[str, float | None]
    images: int

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def evaluate_task(evaluator: Evaluator, model: Model, name: str, task: Task, images: ImageDataset) -> Evaluation:
    """The metrics of a model's task, as the model runs it, and of the baseline over a set of whole images.

    Args:
        evaluator: how.
        model: has the task.
        name: of the task in the model.
        task: says what its metrics are, fitted to its data.
        images: the set.

    Raises:
        OutOfMemoryError: names what to lower.
    """
    metrics = evaluator.metrics(model.raw_network(name), task, images)
    baseline = evaluator.metrics(None, task, images)
    return Evaluation(primary_metric=task.metric, metrics=finite(metrics), baseline=finite(baseline), images=len(images))


def evaluate(
    model: Model | str | os.PathLike[str],
    task: str,
    data: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
    perceptual: Mapping[str, Any] | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Measure a task of a bundle on other images than those of its training; what is to be said of them is logged as warnings.

    The images are brought to the shorter side that the task was measured on when it was learned, unless `data` has `resize` or
    `square`, and metrics are taken at that size. All images count, or the test part of data that have parts: by `parts`, or by
    `fractions`, `blocks` or a `limit` of train or val, with which the set is cut as a training cuts it. Constant baselines, such
    as the majority class, are those of the measured images themselves.

    Example:
        data = {"kind": "image_label_folder", "images": "photos", "labels": "labels"}
        img2img.evaluate("runs/demo", "roofs", data).metrics["mIoU"]

    Args:
        model: an opened bundle, or its folder.
        task: one of its tasks.
        data: the images, as of `add_task`, see `data.build_data`. Where they do not name their classes, they have the task's.
        options: of the task, beside or in place of those in its file: `picture` and `network` of a style, which no file has;
            `sigma` of denoising.
        metrics: perceptual metrics, of tasks that make photos: some of "lpips", "dists" and "kid".
        perceptual: `name` and `weights` of the network that they need, see `metrics.perceptual.PerceptualMetrics`.
        batch_size: images of one size that run together.

    Raises:
        InputError: no such task; data that are missing, cannot be used, or have other classes than the task; an option or a
            metric that does not go with the task.
        OutOfMemoryError: the images do not fit into memory.
    """
    model = model if isinstance(model, Model) else load(model)
    given = validation.mapping("data", data, {"kind": "image_folder", "root": "photos"})
    spec = DataSpec.of(given | _usual_options(given, model, task))
    more = validation.mapping("options", options or {}, {"sigma": 25})
    evaluator = Evaluator(
        stride=model.backbone.stride,
        min_size=model.backbone.min_size,
        device=model.device,
        batch_size=validation.whole_number("batch_size", batch_size) or 8,
        batch_option="batch_size",
        smaller="make the images smaller (resize)",
        perceptual=_perceptual(model.task(task), metrics, perceptual),
    )
    with memory_explained(f"while the images for {task!r} were read", "make them smaller (resize), or take fewer (limit)"):
        images = spec.build_test()
        fitted = _fitted(model.task(task), more, images)
    for warning in images.warnings():
        logger.warning("%s: %s", task, warning)
    return evaluate_task(evaluator, model, task, fitted, images)


def _usual_options(data: Mapping[str, Any], model: Model, name: str) -> dict[str, Any]:
    """Options that `data` lack and the task gives: classes, the size of the images, and what is white in those of 16 bits."""
    task, info = model.task(name), model.tasks[name]
    found: dict[str, Any] = {}
    if task.has_classes and "classes" in inspect.signature(DATA.find(data.get("kind"))).parameters:
        found["classes"] = list(info.classes)
    if data.get("resize") is None and data.get("square") is None:
        found["square" if task.square else "resize"] = info.side
    found["white"] = info.white
    return {key: value for key, value in found.items() if value is not None and data.get(key) is None}


def _perceptual(task: Task, metrics: Any, network: Mapping[str, Any] | None) -> "PerceptualMetrics | None":
    metrics = () if metrics is None else metrics
    if not isinstance(metrics, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in metrics):
        raise InputError(f"metrics={shown(metrics)}: expected a list of perceptual metrics, such as ['lpips']; () for none")
    if not metrics:
        return None
    if not task.compares_images:
        raise InputError(
            f"got metrics={list(metrics)}: expected none, since a {task.kind} task makes no photos to compare with true ones; "
            "leave them out"
        )
    from img2img.metrics.perceptual import PerceptualMetrics  # torchmetrics' image metrics take a second to import

    return PerceptualMetrics(tuple(metrics), network)


def _fitted(task: Task, options: Mapping[str, Any], images: ImageDataset) -> Task:
    """The task with options of the user's, fitted to the images that it is measured on."""
    if options.get("kind", task.kind) != task.kind:
        raise InputError(f"options have the kind {options['kind']!r}: expected {task.kind!r}, which the task is; leave it out")
    again = build_task({**task.options(), **options}) if options else task
    if again.out_channels != task.out_channels:
        raise InputError(
            f"got options={dict(options)}: with them the task has {again.out_channels} outputs, and its head has "
            f"{task.out_channels}; leave out what changes that"
        )
    own, given = tuple(getattr(again, "classes", ())), tuple(images.classes)
    if again.has_classes and not given:
        raise InputError(f"the images have no labels: expected those of a {task.kind} with {_shown(own)}; give them too")
    if again.has_classes and own != given:
        raise InputError(
            f"the images have the classes {_shown(given)}, and the task has {_shown(own)}: expected the same in the same order; "
            "name them in the labels' order, or choose the task that has these"
        )
    again.fit(images)
    return again


def _shown(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:8]) or "none"
    return f"{shown}, ... ({len(classes)})" if len(classes) > 8 else shown
