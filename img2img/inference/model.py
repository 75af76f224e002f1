"""A bundle ready to run: its tasks on pictures of any kind and size."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img.bundle import bundle_folder, load_bases, load_bundle, read_bundle, task_path
from img2img.data.base import Batch
from img2img.data.decode import list_pictures
from img2img.errors import InputError
from img2img.inference.images import Opened, Picture, open_input
from img2img.inference.tiling import run_any_size
from img2img.masks.task import total_bytes
from img2img.tasks import Task, build_task
from img2img.training.evaluate import Evaluator, Network

TILE = 1024
OVERLAP = 128
MERGED_BYTES = 2 << 30

Weights = Literal["cached", "merged"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What a model says of one of its tasks.

    Attributes:
        name: its name.
        kind: "segmentation", "colourisation" and so on.
        forms: what `run` can give, the usual one first.
        classes: of segmentation and classification, else empty.
        method: the mask method's name; "identity" runs on the bare backbone.
        metric: the figure that decides.
        figures: what was measured on the test set when the task was learned.
        density: the fraction of ones in its masks; None where it has none.
        bytes: of its file; None where the model has none.
        side: the shorter side in pixels of the pictures that it was measured on; None where the file does not say. Of a task
            whose pictures were made squares, both sides.
    """

    name: str
    kind: str
    forms: tuple[str, ...]
    classes: tuple[str, ...]
    method: str
    metric: str
    figures: Mapping[str, float | None]
    density: float | None
    bytes: int | None
    side: int | None


class Model:
    """A backbone and its tasks, ready to run. Usually made by `img2img.load`.

    Calls may come from several threads at once. With cached weights they take turns; with merged ones they run side by side.
    A model can be pickled, and so sent to a worker process.

    Args:
        folder: the bundle's.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU where there is one.
        precision: "bfloat16" runs the network in mixed precision: faster where the processor has it, and less exact.
        weights: "cached" computes a task's weights when they are needed and keeps them, up to a gigabyte; "merged" makes an
            ordinary network of each task that is used, and keeps those used last, up to two gigabytes.

    Raises:
        InputError: see `bundle.load_bundle`; or an option is unknown, or the device is not there.

    Attributes:
        folder: the bundle's.
        network: the `MaskedNetwork` with every task loaded.
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
    ) -> None:
        for name, value, known in (("precision", precision, Precision), ("weights", weights, Weights)):
            if value not in known.__args__:  # type: ignore[attr-defined]
                raise InputError(f"{name}={value!r}: expected one of {', '.join(known.__args__)}")  # type: ignore[attr-defined]
        self.folder = Path(folder)
        self.device = _device(device)
        self.network, self.backbone = load_bundle(folder)
        self.network.to(self.device)
        self._merged = weights == "merged"
        self._bfloat16 = precision == "bfloat16"
        self._evaluator = Evaluator(stride=self.backbone.stride, min_size=self.backbone.min_size, device=self.device)
        self._tasks: dict[str, Task] = {name: self._build(name) for name in self.network.tasks()}
        self._plain: OrderedDict[str, nn.Module] = OrderedDict()
        self._merging = Lock()

    def __getstate__(self) -> dict[str, Any]:
        # No lock, and no merged networks, which are made again: so a model can go to another process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_plain", "_merging")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._plain = OrderedDict()
        self._merging = Lock()

    # ------------------------------------------------------------------ what there is

    @property
    def tasks(self) -> dict[str, TaskInfo]:
        """The tasks by name, in the order in which they were learned."""
        return {name: self._info(name) for name in self._tasks}

    def _info(self, name: str) -> TaskInfo:
        state, task = self.network.state(name), self._tasks[name]
        file = task_path(self.folder, name)
        return TaskInfo(
            name=name,
            kind=task.kind,
            forms=task.forms,
            classes=tuple(getattr(task, "classes", ())),
            method=state.method.inner.name,
            metric=task.metric,
            figures=state.info.get("figures", {}),
            density=state.density(),
            bytes=file.stat().st_size if file.is_file() else None,
            side=state.info.get("side"),
        )

    def task(self, name: str) -> Task:
        """The `Task` of a name: its loss, metrics and how its results are shown.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self._tasks:
            raise InputError(f"no task {name!r} in this bundle; it has {', '.join(self._tasks) or 'none'}")
        return self._tasks[name]

    def _build(self, name: str) -> Task:
        return build_task(self.network.state(name).info.get("task", {}))

    # ------------------------------------------------------------------ running

    def run(
        self,
        task: str,
        pictures: Picture | Sequence[Picture],
        *,
        form: str | None = None,
        side: int | None = None,
        tile: int | None = TILE,
        batch_size: int | None = None,
    ) -> Any:
        """A task's results, of the pictures' sizes and types.

        Args:
            task: one of `tasks`.
            pictures: a picture (see `Picture`), a list of them, or a folder, which is searched with its subfolders.
            form: one of the task's forms, the first by default. Segmentation: "colours", "labels" (class indices) or "overlay";
                classification: "picture" (with the class's name) or "scores" (a dict of probabilities by class, the likeliest
                first; of a tensor a tensor, in the order of the classes).
            side: the shorter side in pixels at which the network sees the picture; what it finds is brought back to the full
                size. None: the picture's own; for classification the side that the task was measured on. A task whose
                pictures were made squares (the option `square` of its data) sees a square of it.
            tile: pictures with a longer side than this run in overlapping tiles; None: whole.
            batch_size: pictures of one size that run together; None: 8, or 1 on a CPU, whose caches hold no more.

        Returns:
            The result for one picture; a list for a list; for a folder a dict by the path below it. A file gives a PIL image.

        Raises:
            InputError: no such task or form, or something that is no picture.
        """
        options: Any = {"form": form, "side": side, "tile": tile, "batch_size": batch_size}
        if isinstance(pictures, str | os.PathLike) and Path(pictures).expanduser().is_dir():
            folder = Path(pictures).expanduser()
            files = list_pictures(folder)
            results = self.stream(task, files, **options)
            return {file.relative_to(folder).as_posix(): result for file, result in zip(files, results, strict=True)}
        if isinstance(pictures, list | tuple):
            return list(self.stream(task, pictures, **options))
        return next(self.stream(task, [pictures], **options))  # type: ignore[list-item]

    def run_all(self, picture: Picture, **options: Any) -> dict[str, Any]:
        """The result of every task for one picture, by task; `options` as of `run`, without `form`."""
        opened = open_input(picture)
        return {name: self._results(name, [opened], **_checked(self.task(name), **options))[0] for name in self._tasks}

    def stream(
        self,
        task: str,
        pictures: Iterable[Picture | Opened],
        *,
        form: str | None = None,
        side: int | None = None,
        tile: int | None = TILE,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """Results one after another, for more pictures than fit into memory; `run` says what the arguments are."""
        options = _checked(self.task(task), form=form, side=side, tile=tile)
        size = (1 if self.device.type == "cpu" else 8) if batch_size is None else batch_size
        if size < 1:
            raise InputError(f"batch_size={batch_size}: expected 1 or more")

        def results() -> Iterator[Any]:
            for _, alike in itertools.groupby(map(open_input, pictures), lambda opened: opened.values.shape):
                while some := list(itertools.islice(alike, size)):
                    yield from self._results(task, some, **options)

        return results()

    def add_task(
        self,
        name: str,
        *,
        task: Mapping[str, Any],
        data: Mapping[str, Any],
        method: str | Mapping[str, Any] = "piggyback",
        train: Mapping[str, Any] | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> TaskInfo:
        """Learn a new task on the frozen backbone and keep it, here and in the bundle's folder; no other task changes.

        The training is a run with a folder and a report of its own; the same call goes on after an interruption.

        Example:
            model.add_task(
                "night",
                task={"kind": "translation"},
                data={"kind": "paired_folders", "inputs": "day", "targets": "night", "resize": 160},
                train={"steps": 800},
            )

        Args:
            name: letters, digits, `_` and `-`.
            task: the kind and its options, see `tasks.build_task`.
            data: the kind of data and its options, see `data.build_data`.
            method: "piggyback", "affine", "ksm" or another config of `configs/method`, or a method's name and options.
            train: what differs from the defaults of `configs/protocol/images.yaml`, see `training.options.TrainOptions`.
            out: the run folder; `runs/NAME` by default.

        Raises:
            InputError: the name is taken, or something about the task, its data or the training. The model is as it was.
        """
        from img2img.inference.adding import train_new_task

        if name in self._tasks:
            raise InputError(f"there is a task {name!r} already: choose another name")
        train_new_task(self.folder, name, task=task, data=data, method=method, train=train, out=out)
        load_bases(self.folder, read_bundle(self.folder)["bases"], self.network)
        self.network.load_task(task_path(self.folder, name), name=name)
        self.network.eval()
        self._tasks[name] = self._build(name)
        return self._info(name)

    def save_pretrained(self, folder: str | os.PathLike[str], *, license: str | None = None) -> Path:
        """Write the bundle with a model card in the hub's conventions; see `img2img.hub.save_pretrained`."""
        from img2img.hub import save_pretrained

        return save_pretrained(self.folder, folder, license=license)

    def push_to_hub(self, repo_id: str, *, private: bool = True, license: str | None = None) -> str:
        """Send the bundle with a model card to the hub; see `img2img.hub.push_to_hub`. Returns the commit's address."""
        import tempfile

        from img2img.hub import push_to_hub, save_pretrained

        with tempfile.TemporaryDirectory() as temporary:
            folder = save_pretrained(self.folder, Path(temporary) / "bundle", license=license, repo_id=repo_id)
            return push_to_hub(folder, repo_id, private=private)

    def predict(self, task: str, picture: Picture) -> Tensor:
        """The task's prediction in its own form, without a batch axis: class indices of pixels, raw scores of classes, ab in Lab
        units, RGB in [0, 1], ..."""
        opened = open_input(picture)
        prediction, _ = self._predict(task, opened.values, side=None, tile=TILE)
        return prediction if opened.batched else prediction[0]

    def _results(self, name: str, opened: Sequence[Opened], *, form: str, side: int | None, tile: int | None) -> list[Any]:
        task = self._tasks[name]
        values = torch.cat([one.values for one in opened])
        prediction, input = self._predict(name, values, side=side, tile=tile)
        shown = task.show(prediction, input, form)
        results, first = [], 0
        for one in opened:
            part = shown[first : first + len(one.values)]
            first += len(one.values)
            if form == "labels":
                results.append(one.labels(part, task.out_channels))
            elif form == "scores":
                results.append(one.scores(part, tuple(getattr(task, "classes", ()))))
            else:
                results.append(one.picture(part))
        return results

    @torch.no_grad()
    def _predict(self, name: str, values: Tensor, *, side: int | None, tile: int | None) -> tuple[Tensor, Tensor]:
        """The prediction for (N, 3, H, W) in [0, 255], and the full-size input that belongs to it."""
        task, network = self.task(name), self._network(name)
        values = values.to(self.device)
        input = seen = task.served_input(Batch(image=values))
        size = (values.shape[-2], values.shape[-1])
        if side is None and task.whole_picture:
            side = self.network.state(name).info.get("side")
        small = size if side is None else (side, side) if task.square else _with_shorter_side(size, side)
        if small != size:
            resized = F.interpolate(values.float(), small, mode="bilinear", antialias=True, align_corners=False)
            seen = task.served_input(Batch(image=resized.clamp(0, 255)))
        with self._autocast():
            raw = run_any_size(network, seen, self._evaluator, tile=None if task.whole_picture else tile, overlap=OVERLAP)
        if raw.ndim == 4 and small != size:
            raw = F.interpolate(raw.float(), size, mode="bilinear", align_corners=False)
        return task.prediction(raw, input), input

    def _network(self, name: str) -> Network:
        if not self._merged:
            return lambda x: self.network(x, task=name)
        with self._merging:
            if name not in self._plain:
                self._plain[name] = self.network.merge(name)
            self._plain.move_to_end(name)
            plain = self._plain[name]
            while len(self._plain) > 1 and sum(total_bytes(p.state_dict()) for p in self._plain.values()) > MERGED_BYTES:
                self._plain.popitem(last=False)
        return plain

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()


def load(
    folder: str | os.PathLike[str], *, device: str = "auto", precision: Precision = "float32", weights: Weights = "cached"
) -> Model:
    """Open a bundle, or a run's folder, which has one in `bundle/`.

    Args:
        folder: the bundle.
        device: see `Model`, as are `precision` and `weights`.
        precision: "float32" or "bfloat16".
        weights: "cached" or "merged".

    Raises:
        InputError: nothing there, or a file is damaged; see `bundle.load_bundle`.
    """
    return Model(bundle_folder(folder), device=device, precision=precision, weights=weights)


def _checked(task: Task, *, form: str | None = None, side: int | None = None, tile: int | None = TILE) -> dict[str, Any]:
    if form is not None and form not in task.forms:
        raise InputError(f"form={form!r}: a {task.kind} task gives {', '.join(task.forms)}")
    for name, value in (("side", side), ("tile", tile)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: expected 1 pixel or more, or None")
    if tile is not None and tile <= OVERLAP:
        raise InputError(f"tile={tile}: expected more than {OVERLAP} pixels, which neighbouring tiles share; or None")
    return {"form": form or task.forms[0], "side": side, "tile": tile}


def _with_shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / min(size)
    height, width = (max(1, round(n * scale)) for n in size)
    return height, width


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={name!r} cannot be used here ({reason}): expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    return device
