"""A bundle ready to run: its tasks on images of any kind and size."""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from img2img import validation
from img2img.bundle import load_bases, open_bundle, read_bundle, register_tasks, task_path
from img2img.data.images.bit_depth import check_white
from img2img.data.images.listing import list_images
from img2img.errors import InputError, memory_explained
from img2img.inference.chunked import RunSettings
from img2img.inference.conversion import ImageLike, OpenedImages
from img2img.inference.device import chosen_device, usual_batch, warn_of_emulation
from img2img.inference.evaluator import Evaluator, Network
from img2img.inference.memory_estimate import memory_needed, network_bytes
from img2img.inference.merged_networks import MERGED_BYTES, MergedNetworks
from img2img.inference.mixed_batches import Batching, MixedBatches, checked_batching, run_by_task
from img2img.inference.open_images import FailedImage, as_many, folder_of, open_each, open_one
from img2img.inference.prediction import (
    OVERLAP,
    TILE,
    checked_form,
    checked_side,
    checked_size,
    checked_tile,
    prediction,
    results,
    tile_for,
    view_of,
)
from img2img.inference.task_info import BundleChanges, TaskFacts, TaskFileError, TaskInfo, TaskInfos
from img2img.tasks import Task

Weights = Literal["cached", "merged"]
Precision = Literal["float32", "bfloat16"]
Errors = Literal["raise", "return"]


class Model:
    """A backbone and its tasks, ready to run. Usually made by `img2img.load`.

    Calls may come from several threads at once. With cached weights they take turns; with merged ones they run side by side; with
    `batching` they are gathered into batches of mixed tasks. A model can be pickled, and so sent to a worker process.

    Args:
        folder: the bundle's.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU where there is one.
        precision: "bfloat16" runs the network in mixed precision: faster where the device has instructions for it, less exact.
        weights: "cached" computes a task's weights when they are needed and keeps them, up to a gigabyte; "merged" makes an
            ordinary network of each task that is used, and keeps those used last, up to two gigabytes.
        weights_bytes: another bound on the weights that are kept so; the task used last is always kept.
        loaded_bytes: another bound on the tasks themselves that are kept (masks, normalisation, head), 256 MB by default. Those
            used last are kept, and the others are read from their files again when they are used.
        batching: how calls of several threads are gathered; None: they are not, as on a CPU unless it has a `batch_max`.

    Raises:
        InputError: see `bundle.open_bundle`; or an option is unknown, or the device is not there.

    Attributes:
        folder: the bundle's.
        network: the `MaskedNetwork` with every task, each read from its file when it is first used.
        backbone: the plain backbone: `stride`, `min_size`, `spec`.
        device: where it runs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: Precision = "float32",
        weights: Weights = "cached",
        weights_bytes: int | None = None,
        loaded_bytes: int | None = None,
        batching: Batching | None = None,
    ) -> None:
        validation.one_of("precision", precision, get_args(Precision))
        validation.one_of("weights", weights, get_args(Weights))
        validation.whole_number("weights_bytes", weights_bytes)
        validation.whole_number("loaded_bytes", loaded_bytes)
        self.folder = validation.path("folder", folder)
        self.device = chosen_device(device)
        self.network, self.backbone = open_bundle(self.folder, cache_bytes=weights_bytes, loaded_bytes=loaded_bytes)
        self.network.to(self.device)
        self._bfloat16 = precision == "bfloat16"
        if self._bfloat16:
            warn_of_emulation(self.device, "precision=bfloat16", "leave it out")
        self._evaluator = Evaluator(stride=self.backbone.stride, min_size=self.backbone.min_size, device=self.device)
        self._facts, self._infos = dict[str, TaskFacts](), dict[str, TaskInfo]()
        self._merged = MergedNetworks(self.network, weights_bytes or MERGED_BYTES) if weights == "merged" else None
        self._network_bytes: dict[Any, float] = {}
        self.batches: MixedBatches | None = None
        batching = checked_batching(batching)
        if batching is not None and (most := batching.batch_max or usual_batch(self.device)) > 1:
            on_cpu = self.device.type == "cpu"
            self._alone = on_cpu if batching.exact is None else batching.exact
            workers = 2 if on_cpu and weights == "merged" else 1
            self.batches = MixedBatches(self._run_batch, most, window=batching.window, workers=workers)

    def __repr__(self) -> str:
        names = self.network.tasks()
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} tasks)" if len(names) > 12 else "")
        return f"<Model of {str(self.folder)!r} on {self.device}: {shown}>"

    # ------------------------------------------------------------------ what there is

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """The tasks by name, in the order in which they were learned; a task's file is read when its value is asked for.

        Raises:
            InputError: of a value: the file is damaged, or does not belong to the backbone.
        """
        return TaskInfos(self.network.tasks(), self._info)

    def _info(self, name: str) -> TaskInfo:
        if name not in self._infos:
            state = self.network.state(name)
            self._infos[name] = TaskInfo.of(name, self.task(name), state, task_path(self.folder, name))
        return self._infos[name]

    def task(self, name: str) -> Task:
        """The `Task` of a name: its loss, metrics and how its results are shown.

        Raises:
            InputError: there is none of that name, or its file is damaged or does not belong to the backbone.
        """
        return self._facts_of(name).task

    def _facts_of(self, name: str) -> TaskFacts:
        self.network.check_has(name)
        if name not in self._facts:
            self._facts[name] = TaskFacts.of(self.network.state(name))
        return self._facts[name]

    def bundle_changes(self) -> BundleChanges:
        """How the bundle's folder differs from what the model has; it reads `bundle.json` alone, so it may be asked every second.

        Raises:
            InputError: `bundle.json` is damaged.
        """
        listed, known = (dict.fromkeys(names) for names in (read_bundle(self.folder)["tasks"], self.network.tasks()))
        return BundleChanges(
            added=tuple(name for name in listed if name not in known),
            removed=tuple(name for name in known if name not in listed),
            replaced=tuple(name for name in self.network.replaced_files() if name in listed),
        )

    def load_new_tasks(self) -> list[str]:
        """Add the tasks that came into the bundle since it was opened, each read once; the others go on as they are. Their names.

        Raises:
            InputError: a file is missing, damaged, or of another network. The model is as it was.
        """
        description = read_bundle(self.folder)
        names = [name for name in description["tasks"] if name not in self.network.tasks()]
        load_bases(self.folder, description["bases"], self.network)
        register_tasks(self.folder, names, self.network, self.backbone)
        try:
            for name in names:
                self.task(name)
        except BaseException:
            self.remove_tasks(names)
            raise
        return names

    def remove_tasks(self, names: Iterable[str]) -> None:
        """Forget tasks; their files stay. No call may be running them."""
        for name in names:
            self.network.delete_task(name)
            self._facts.pop(name, None)
            self._infos.pop(name, None)
            if self._merged is not None:
                self._merged.drop(name)

    def weights_kept(self) -> dict[str, int]:
        """Of the weights that are kept for tasks: their `bytes`, and how often they were there (`hits`) or not (`misses`)."""
        if self._merged is not None:
            return {"bytes": self._merged.bytes(), "hits": self._merged.hits, "misses": self._merged.misses}
        return self.network.cache_counts()

    # ------------------------------------------------------------------ running

    def run(
        self,
        task: str,
        images: ImageLike | Sequence[ImageLike],
        *,
        form: str | None = None,
        side: int | None = None,
        tile: int | None = TILE,
        batch_size: int | None = None,
        errors: Errors = "raise",
        white: int | None = None,
    ) -> Any:
        """A task's results, of the images' sizes and types.

        Args:
            task: one of `tasks`.
            images: an image (see `ImageLike`), a list of them, or a folder, which is searched with its subfolders.
            form: one of the task's forms, the first by default. Segmentation: "colours", "labels" (class indices) or "overlay";
                classification: "image" (with the class's name) or "scores" (a dict of probabilities by class, the likeliest
                first; of a tensor a tensor, in the order of the classes).
            side: the shorter side in pixels at which the network sees the image; what it finds is brought back to the full
                size. None: the image's own; for segmentation and colourisation no more than the side that the task was
                measured on, and for classification that side. A task whose images were made squares (the option `square` of its
                data) sees a square of it.
            tile: images with a longer side than this run in overlapping tiles, one image after another; None: whole. A task with
                instance statistics always sees the whole image, of four million pixels at most unless this is None.
            batch_size: images of one size that run together; None: 8, or 1 on a CPU, whose caches hold no more.
            errors: of a list or a folder: "raise" ends with the first image that fails; "return" goes on, and the error stands
                in the place of that image's result.
            white: the value that is white in images of 16 bits, such as 4095 of a camera of 12 bits; None: what the task
                learned from, mostly 65535.

        Returns:
            The result for one image; a list for a list; for a folder a dict by the path below it. A file gives a PIL image.

        Raises:
            InputError: no such task or form, an option of a wrong type or out of range, or something that is no image.
            OutOfMemoryError: the image does not fit into memory so; the message names what to lower.
        """
        options: Any = {"form": form, "side": side, "tile": tile, "batch_size": batch_size, "errors": errors, "white": white}
        folder = folder_of(images)
        if folder is not None:
            files = list_images(folder)
            found = self.stream(task, files, **options)
            return {file.relative_to(folder).as_posix(): result for file, result in zip(files, found, strict=True)}
        if isinstance(images, list | tuple):
            return list(self.stream(task, images, **options))
        self._checked_options(task, form=form, side=side, tile=tile)  # a wrong option is reported before a wrong image
        validation.one_of("errors", errors, get_args(Errors))
        return next(self.stream(task, [open_one(images, white=self._white(task, white))], **options | {"errors": "raise"}))

    def run_all(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        side: int | None = None,
        tile: int | None = TILE,
        batch_size: int | None = None,
        errors: Errors = "raise",
        white: int | None = None,
    ) -> dict[str, Any]:
        """What `run` gives of every task, by task, in its usual form; the arguments are those of `run`."""
        many = folder_of(images) is not None or isinstance(images, list | tuple)
        options: Any = {"side": side, "tile": tile, "batch_size": batch_size, "errors": errors, "white": white}
        validation.one_of("errors", errors, get_args(Errors))
        for name in self.network.tasks():
            self._checked_options(name, form=None, side=side, tile=tile)
        results, opened = {}, dict[int | None, OpenedImages]()
        for name in self.network.tasks():
            given: Any = images
            if not many:
                task_white = self._white(name, white)
                given = opened[task_white] = opened.get(task_white) or open_one(images, white=task_white)
            results[name] = self.run(name, given, **options)
        return results

    def _white(self, name: str, white: Any = None) -> int | None:
        """The value that is white in images of 16 bits for a task: the one given, or the one that it learned from."""
        return check_white(self._facts_of(name).white if white is None else white, "white")

    def stream(
        self,
        task: str,
        images: Iterable[ImageLike | OpenedImages] | str | os.PathLike[str],
        *,
        form: str | None = None,
        side: int | None = None,
        tile: int | None = TILE,
        batch_size: int | None = None,
        errors: Errors = "raise",
        white: int | None = None,
    ) -> Iterator[Any]:
        """Results one after another, for more images than fit into memory; `run` says what the arguments are."""
        checked = self._checked_options(task, form=form, side=side, tile=tile)
        size = validation.whole_number("batch_size", batch_size) or usual_batch(self.device)
        going_on = validation.one_of("errors", errors, get_args(Errors)) == "return"
        opened = open_each(as_many(images), white=self._white(task, white))

        def generate() -> Iterator[Any]:
            for shape, alike in itertools.groupby(opened, lambda one: None if isinstance(one, FailedImage) else one.values.shape):
                while some := list(itertools.islice(alike, 1 if shape is None else size)):
                    for result in self._results(task, some, checked):
                        if isinstance(result, Exception) and not going_on:
                            raise result
                        yield result

        return generate()

    def check(self, task: str, *, form: str | None = None, side: int | None = None, tile: int | None = TILE) -> None:
        """Raise the `InputError` that `run` would raise for these arguments, whatever the image."""
        self._checked_options(task, form=form, side=side, tile=tile)

    def memory(self, task: str, size: tuple[int, int], *, side: int | None = None) -> int:
        """A bound in bytes on what `run` takes for one image beside the loaded model; see `inference.memory_estimate`.

        Args:
            task: one of `tasks`.
            size: (height, width) of the image.
            side: as of `run`.

        Raises:
            InputError: no such task, an option out of range, or a view that `run` would refuse.
        """
        side = self._checked_options(task, form=None, side=side, tile=TILE)["side"]
        facts = self._facts_of(task)
        height, width = checked_size(size)
        size = (facts.task.enlarges * height, facts.task.enlarges * width)
        setting = self._setting(task, size, side=side, tile=TILE, gathered=False)
        if facts.shape not in self._network_bytes:  # of hundreds of tasks most take as much as another
            self._network_bytes[facts.shape] = network_bytes(setting)
        return memory_needed(size, setting, self._network_bytes[facts.shape])

    def _checked_options(self, name: str, *, form: Any, side: Any, tile: Any) -> dict[str, Any]:
        task = self.task(name)
        return {"form": checked_form(task, form), "side": checked_side(side, self.backbone.stride), "tile": checked_tile(tile)}

    @torch.no_grad()
    def predict(self, task: str, image: ImageLike) -> Tensor:
        """The task's prediction in its own form, without a batch axis: class indices of pixels, raw scores of classes, ab in Lab
        units, RGB in [0, 1], ..."""
        self.task(task)
        opened = open_one(image, white=self._white(task)).enlarged(self.task(task).enlarges)
        with self._explained(task, opened.size):
            found = prediction(opened.values, self._setting(task, opened.size, side=None, tile=TILE))
        return found if opened.batched else found[0]

    @torch.no_grad()
    def _results(self, name: str, opened: Sequence[OpenedImages | FailedImage], checked: Mapping[str, Any]) -> list[Any]:
        """The results for images of one size; where an image could not be read, its `InputError` in place of a result."""
        sound = [one for one in opened if isinstance(one, OpenedImages)]
        if not sound:
            return [one.error for one in opened if isinstance(one, FailedImage)]
        try:
            sound = [one.enlarged(self.task(name).enlarges) for one in sound]
            size = sound[0].size
            with self._explained(name, size), nullcontext() if self.batches is None else self.batches.announced():
                return results(sound, self._setting(name, size, side=checked["side"], tile=checked["tile"]), checked["form"])
        except (InputError, MemoryError) as error:
            return [error] * len(sound)

    def _setting(
        self, name: str, size: tuple[int, int], *, side: int | None, tile: int | None, gathered: bool = True
    ) -> RunSettings:
        facts = self._facts_of(name)
        task, by_instance = facts.task, facts.by_instance
        alone = functools.cache(lambda: self.raw_network(name))  # sizes alone need none
        batches = self.batches if gathered else None
        view = view_of(task, size, side=side, measured_side=facts.side, tile=tile, by_instance=by_instance)
        if by_instance and tile is not None:
            tile = max(tile, *view)  # one tile, so that what it normalises by is that of the whole view

        def compact(x: Tensor) -> Tensor:
            return task.compact(alone()(x) if batches is None else batches(name, x), x)

        tile = tile_for(task, tile)
        return RunSettings(task=task, network=compact, evaluator=self._evaluator, view=view, tile=tile, overlap=OVERLAP)

    def raw_network(self, name: str) -> Network:
        """A task's network with the weights and the precision of this model: what it gives is the head's raw output."""
        plain = self._network(name)

        def with_precision(x: Tensor) -> Tensor:
            with self._autocast():
                return plain(x)

        return with_precision

    @torch.no_grad()
    def _run_batch(self, tasks: Sequence[str], inputs: Sequence[Tensor]) -> Iterator[tuple[list[int], list[Tensor]]]:
        with self._autocast():
            yield from run_by_task(tasks, inputs, self._network, alone=self._alone)

    def _explained(self, name: str, size: tuple[int, int]) -> AbstractContextManager[None]:
        remedy = "make the image smaller, or lower side=, tile= or batch_size="
        return memory_explained(f"while {name!r} ran on an image of {size[1]} x {size[0]}", remedy)

    def _network(self, name: str) -> Network:
        try:
            self.network.state(name)
        except InputError as error:
            raise TaskFileError(str(error)) from error
        return (lambda x: self.network(x, task=name)) if self._merged is None else self._merged[name]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()
