"""Masks on the frozen backbone: what img2img is about. Everything that was learned is in the run's bundle."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from img2img.bundle import add_task_to_bundle, load_bases, task_path
from img2img.errors import InputError
from img2img.inference.evaluator import Network
from img2img.masks import Basis, Identity, basis_of_tasks
from img2img.masks.parameter_count import relative_parameters
from img2img.masks.tensors import total_bytes
from img2img.training.strategy import Context, Phase, Strategy
from img2img.validation import call_with

logger = logging.getLogger("img2img")


@dataclass(kw_only=True)
class MaskStrategy(Strategy):
    """A mask, a normalisation state and a head a task, by the mask methods of the experiment.

    Attributes:
        bundle: where tasks are stored.
    """

    bundle: Path
    name: ClassVar[str] = ""  # no comparison method

    def begin(self, context: Context) -> None:
        """With the bases of the bundle that the backbone is from, if it is from one."""
        super().begin(context)
        if source := context.experiment.source:
            load_bases(source.folder, source.bases, context.network)

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """The first task runs on the backbone without a mask."""
        network = self.context.network
        network.add_task(name, Identity(), head=head)
        network.freeze_task(name)
        return iter(())

    def learn(self, name: str) -> Iterator[Phase]:
        """Train a mask."""
        experiment, network = self.context.experiment, self.context.network
        method = experiment.mask_method(name)
        with nullcontext() if experiment.source is None else experiment.source.lent(network):
            self._make_basis(method.basis_name())
            start_from = self._start_of(name)
            if start_from is not None:
                logger.info("%s: starts from the masks of %s", name, start_from)
            network.add_task(name, method, head=self.context.head(name), norm=experiment.norm, start_from=start_from)
        self.context.place(network)
        module = network.task_module(name)
        yield Phase(module=module, head=module.state.head, extra=lambda input, output: module.state.penalty())
        network.freeze_task(name)

    def abandon(self, name: str) -> None:
        """The network as it was before the task."""
        if name in self.context.network.tasks():
            self.context.network.delete_task(name)

    def network(self, name: str) -> Network:
        """The masked network as the task sees it."""
        network = self.context.network

        def run(x: Tensor) -> Tensor:
            y: Tensor = network.eval()(x, task=name)
            return y

        return run

    def store(self, name: str, figures: Mapping[str, float | None]) -> None:
        """Write the task's file into the bundle."""
        task_data = self.context.task_data[name]
        side = min(task_data.parts.test[0].image.shape[:2])
        info: dict[str, Any] = {"figures": dict(figures), "side": side}
        if task_data.parts.test.white is not None:
            info["white"] = task_data.parts.test.white
        add_task_to_bundle(self.bundle, self.context.network, name, options=task_data.task.options(), info=info)

    def own_bytes(self, name: str) -> int:
        """The task's file."""
        return self._file(name).stat().st_size

    def shared_bytes(self) -> int:
        """The backbone."""
        return total_bytes(self.context.network.backbone.state_dict())

    def relative_parameters(self) -> float:
        """The backbone, and masks, their numbers and the norm parameters of each task."""
        return relative_parameters(self.context.network)

    def density(self, name: str) -> float | None:
        """The fraction of ones over all binary masks."""
        return self.context.network.state(name).density()

    def restore(self, own: Mapping[str, Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """Load the finished tasks from the bundle."""
        for name in own:
            self.context.network.load_task(self._file(name), name=name)
        self.context.place(self.context.network)

    def _file(self, name: str) -> Path:
        return task_path(self.bundle, name)

    def _make_basis(self, name: str | None) -> None:
        """Make a basis of the experiment, unless a task before used it, or the bundle of the backbone has the very same."""
        network, experiment = self.context.network, self.context.experiment
        if name is None:
            return
        present = network.bases().get(name)
        if present is not None and (experiment.source is None or name not in experiment.bases):
            return
        options = dict(experiment.bases[name])
        logger.info("basis %s: %s", name, options)

        def of_tasks(*, tasks: Sequence[str], kind: str = "binary") -> Basis:
            return basis_of_tasks(network, tasks, kind=kind)  # type: ignore[arg-type]

        def random(*, count: int, density: float, seed: int, kind: str = "binary") -> Basis:
            return Basis.random(network.layers(), count=count, density=density, seed=seed, kind=kind)  # type: ignore[arg-type]

        basis: Basis = call_with(of_tasks if "tasks" in options else random, options, what=f"bases.{name}")
        if present is None:
            network.add_basis(name, basis)
        elif present.sha256 != basis.sha256:
            raise InputError(
                f"bases.{name} is another one than the basis {name!r} that the bundle of the backbone has: give it another name, "
                f"or leave bases.{name} out to take the bundle's"
            )

    def _start_of(self, name: str) -> str | None:
        """The task that this one starts from."""
        experiment, evaluator, task_data = self.context.experiment, self.context.evaluator, self.context.task_data[name]
        start = experiment.task(name).start_from
        if start != "nearest":
            return start
        input = evaluator.probe_input(task_data.task, task_data.parts.train, experiment.batch_size)
        return self.context.network.nearest_task(evaluator.placed(input))
