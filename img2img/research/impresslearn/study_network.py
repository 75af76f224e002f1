"""One random network and its tasks, learned once and kept as files: what the measurements of a study work with."""

import contextlib
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from img2img.backbones.lenet import LeNet
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.masks import MaskedNetwork, MaskMethod, randomise
from img2img.masks.storage import read_header
from img2img.research.impresslearn.numbered_tasks import NumberedTasks
from img2img.research.impresslearn.options import Study
from img2img.research.impresslearn.stacked_training import train_stacked
from img2img.training.checked_files import read_checked_json, write_checked_json

logger = logging.getLogger("img2img")


class Job(NamedTuple):
    """A task to learn: its name in the network, the number of its images' task, and which of several trainings on them."""

    task: str
    number: int
    repeat: int = 0


class StudyNetwork:
    """The network of one seed, with what was learned on it at one density.

    A finished task is a task file, a finished measurement a JSON file; both say what they depend on, and are made anew where that
    has changed.

    Args:
        study: the options.
        family: where images come from.
        seed: one of the study's.
        density: one of the study's.
    """

    def __init__(self, study: Study, family: NumberedTasks, *, seed: int, density: float) -> None:
        self.study = study
        self.family = family
        self.seed = seed
        self.density = density
        self.folder = expanded(study.out) / f"seed{seed}" / f"density{density:g}"
        backbone = lenet(family.pixels(1, "test")[0][0].numel(), study.hidden, study.outputs)
        randomise(backbone, kind=study.weights, seed=seed, density=density if study.scaled else None)
        self.network = MaskedNetwork(backbone).eval()

    def learn(self, jobs: Sequence[Job], method: MaskMethod, *, epochs: int, folder: str, lr: float | None = None) -> None:
        """Have tasks of `method` in the network, frozen: from their files under `folder`, or trained now, several at once.

        Args:
            jobs: the tasks.
            method: how they mask.
            epochs: passes over their training images.
            folder: where their files are, in the workbench's.
            lr: the learning rate, the study's by default.
        """
        lr = self.study.train.lr if lr is None else lr
        missing = []
        for job in jobs:
            if job.task in self.network.tasks():
                continue
            path = self.path(folder, job)
            if path.is_file() and read_header(path)["info"].get("depends") == self._depends(job, method, epochs, lr):
                self.network.load_task(path, name=job.task)
            else:
                missing.append(job)
        size = self.study.train.together
        for start in range(0, len(missing), size):
            self._train(missing[start : start + size], method, epochs=epochs, folder=folder, lr=lr)

    def _train(self, jobs: Sequence[Job], method: MaskMethod, *, epochs: int, folder: str, lr: float) -> None:
        start, options = time.perf_counter(), self.study.train
        for job in jobs:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed_of("scores", job))
                self.network.add_task(job.task, method)
        # Coefficients have no random start, so that a repeated training differs in the order of its images alone.
        seeds = [self.seed_of("order", job) for job in jobs]
        batches = self.family.batches([job.number for job in jobs], seeds, epochs=epochs, batch_size=options.batch_size)
        losses = train_stacked(
            self.network,
            [job.task for job in jobs],
            batches,
            steps=epochs * self.family.steps(options.batch_size),
            optimiser=partial(torch.optim.RMSprop, lr=lr),
        )
        last = losses[-max(1, len(losses) // 10) :].mean(0).tolist()
        seconds = (time.perf_counter() - start) / len(jobs)
        for job, loss in zip(jobs, last, strict=True):
            info = {
                "depends": self._depends(job, method, epochs, lr),
                "loss": loss,
            }  # no times: files of equal tasks have equal sizes
            self.network.save_task(job.task, self.path(folder, job), info=info)
        logger.info("%s: %s to %s, %.1f s each", self, jobs[0].task, jobs[-1].task, seconds)

    def path(self, folder: str, job: Job) -> Path:
        """The file of a task."""
        return self.folder / folder / f"{job.task}.safetensors"

    def seed_of(self, what: str, job: Job) -> int:
        """A seed for one task's start scores or order, the same whatever ran before."""
        text = f"{self.seed} {self.density:g} {what} {job.number} {job.repeat}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def _depends(self, job: Job, method: MaskMethod, epochs: int, lr: float) -> dict[str, Any]:
        """Whatever the training of a task depends on, beside the backbone and basis, whose hashes its file has anyway."""
        basis = method.basis_name()
        return {
            "data": _portable(self.study.data),
            "backbone": self.network.backbone_sha256,
            "method": {"name": method.name, **method.options()},
            "basis": None if basis is None else self.network.bases()[basis].sha256,
            "number": job.number,
            "order": self.seed_of("order", job),
            "epochs": epochs,
            "batch_size": self.study.train.batch_size,
            "lr": lr,
        }

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Tasks and bases that are added in the block are gone after it; their files stay."""
        tasks, bases = set(self.network.tasks()), set(self.network.bases())
        try:
            yield
        finally:
            for task in set(self.network.tasks()) - tasks:
                self.network.delete_task(task)
            for basis in set(self.network.bases()) - bases:
                self.network.delete_basis(basis)

    @torch.no_grad()
    def outputs(self, task: str, x: Tensor) -> Tensor:
        """The logits of a task's network, (N, outputs)."""
        out: Tensor = self.network(x, task=task)
        return out

    def accuracy(self, task: str, number: int) -> float:
        """The fraction of the test images of task `number` that the network of `task` gets right."""
        x, y = self.family.test(number)
        return (self.outputs(task, x).argmax(1) == y).double().mean().item()

    def unit(self, name: str, depends: Any, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, plain JSON: from the file `units/NAME.json`, or measured now and written there."""
        path = self.folder / "units" / f"{name}.json"
        train = {key: value for key, value in vars(self.study.train).items() if key != "together"}
        depends = json.loads(json.dumps([_portable(self.study.data), self.network.backbone_sha256, train, depends]))
        if path.is_file():
            remedy = "delete it, and it is measured again"
            found = read_checked_json(path, remedy=remedy)
            if found.keys() != {"depends", "seconds", "value"}:
                raise InputError(f"{path} holds {', '.join(found):.60}: expected depends, seconds and value; {remedy}")
            if found["depends"] == depends:
                return found["value"]
        start = time.perf_counter()
        with self.borrowed():
            value = json.loads(json.dumps(measure()))
        seconds = time.perf_counter() - start
        write_checked_json(path, {"depends": depends, "seconds": seconds, "value": value})
        logger.info("%s: %s, %.1f s", self, name, seconds)
        return value

    def __str__(self) -> str:
        return f"seed {self.seed}, density {self.density:g}"


def lenet(pixels: int, hidden: Sequence[int], outputs: int) -> nn.Module:
    """LeNet from its first linear layer on: (N, 1, H, W) standardised grey to (N, outputs) logits, the output layer included.

    What the whole backbone does before, it does for three channels, which would be a quarter of the time here; `NumberedTasks`
    gives standardised images of one.
    """
    whole = LeNet(in_pixels=pixels, hidden=list(hidden), out_channels=outputs, output="backbone")
    assert isinstance(whole.trunk, nn.Sequential)
    assert whole.output is not None
    return nn.Sequential(OrderedDict(trunk=whole.trunk[1:], output=whole.output))


def _portable(data: Any) -> dict[str, Any]:
    """A family's options without where its files lie on this machine."""
    return {key: value for key, value in data.items() if key != "root"}
