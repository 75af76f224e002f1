"""Masks on the frozen backbone: what img2img is about. Everything that was learned is in the run's bundle."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from img2img.bundle import add_task_to_bundle, check_new_name, load_bases, stored_bytes, task_path
from img2img.errors import InputError
from img2img.inference.evaluator import Network
from img2img.inference.prediction import measured_side
from img2img.masks import Basis, Identity, MaskedNetwork, TaskModule, basis_of_tasks
from img2img.masks.analysis import relative_parameters
from img2img.masks.flips import FlipMeter
from img2img.masks.methods.mixed import names_of_copies
from img2img.masks.task_state import TaskState
from img2img.training.config import BasisOfTasks, Experiment, OptimiserOptions
from img2img.training.finetuned import FinetunedTask
from img2img.training.log import Callback, TrainingLog
from img2img.training.mask_check import check_masks, check_stored
from img2img.training.optimiser import Groups, ParameterGroup
from img2img.training.results import FinetunedResult
from img2img.training.strategies import MASKS, STRATEGIES
from img2img.training.strategy import Context, Phase, Strategy

logger = logging.getLogger("img2img")

Parameters = Sequence[nn.Parameter]


def masked_groups(
    options: OptimiserOptions, *, scores: Parameters, norm: Parameters, head: Parameters, weights: Parameters = ()
) -> list[ParameterGroup]:
    """The groups of a task that trains masks.

    Scores decay only where `mask_weight_decay` says so: decay pulls them to the threshold. `Mask.trained_as` says what a mask's
    parameters are.

    Args:
        options: the rates and so on.
        scores: all that masks learn.
        norm: normalisation parameters.
        head: the task's.
        weights: that are trained themselves.
    """
    head_lr = options.lr if options.head_lr is None else options.head_lr
    norm_lr = head_lr if options.norm_lr is None else options.norm_lr
    return [
        ParameterGroup(scores, options.mask, options.mask_lr, options.mask_weight_decay),
        ParameterGroup(norm, options.name, norm_lr),
        ParameterGroup(head, options.name if options.head is None else options.head, head_lr, options.weight_decay),
        ParameterGroup(weights, options.name, options.lr, options.weight_decay),
    ]


def groups_of(module: TaskModule) -> Groups:
    """What a masked task trains; the copies of weights that it has to itself are weights."""

    def groups(options: OptimiserOptions) -> list[ParameterGroup]:
        state, trained = module.state, [p for p in module.parameters() if p.requires_grad]
        copies = {id(p) for _, mask in state.named_masks() if mask.trained_as == "weight" for p in mask.parameters()}
        scores = {id(p) for p in state.masks.parameters()} - copies
        head = set() if state.head is None else {id(p) for p in state.head.parameters()}
        return masked_groups(
            options,
            scores=[p for p in trained if id(p) in scores],
            norm=[p for p in trained if id(p) not in scores | head | copies],
            head=[p for p in trained if id(p) in head],
            weights=[p for p in trained if id(p) in copies],
        )

    return groups


class FlipLog(Callback):
    """Logs at each validation how dense the masks of each layer are, and how many of their values have flipped."""

    def __init__(self, state: TaskState) -> None:
        self._meter = FlipMeter(state)

    def after_validation(self, step: int, log: TrainingLog) -> None:
        """Rows by layer, and means over all of them as scalars."""
        rows = self._meter.update()
        log.add_rows("masks", [{"step": step, **asdict(row)} for row in rows])
        if weights := sum(row.weights for row in rows):
            log.add_scalar("masks/density", sum(row.density * row.weights for row in rows) / weights, step)
            log.add_scalar("masks/flips", sum(row.flips for row in rows) / weights, step)

    def state(self) -> dict[str, Any]:
        """The masks at the last validation."""
        return dict(self._meter.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Compare with these masks next."""
        self._meter.load_state_dict(state)


@STRATEGIES.register(MASKS)
@dataclass(kw_only=True)
class MaskStrategy(Strategy):
    """A mask, a normalisation state and a head a task, by the mask method of each task, stored in the run's bundle."""

    cannot_forget: ClassVar[bool] = True

    def check(self, experiment: Experiment, network: MaskedNetwork) -> None:
        """Refuse patterns of copied weights that fit none, masks that cannot be made, and names that differ in case alone."""
        source, names = experiment.backbone.source, [task.name for task in experiment.tasks]
        for name in names:  # before hours of training: the bundle would refuse them, and that of the backbone when it is joined
            check_new_name(name, [*names, *(() if source is None else source.tasks)])
        names_of_copies(experiment.masks.trainable_copies or (), network.masked_weights())
        check_masks(experiment, network)

    def begin(self, context: Context) -> None:
        """With the bases of the bundle that the backbone is from, if it is from one."""
        super().begin(context)
        self._finetuned: dict[str, FinetunedTask] = {}
        experiment = context.experiment
        if source := experiment.backbone.source:
            load_bases(source.folder, source.bases, context.network)
            used = {task.method.basis_name() for task in experiment.tasks if task.method is not None}
            for name, options in experiment.bases.items():
                # One of tasks is compared when it is needed: the tasks are not there yet.
                if name in used and name in source.bases and not isinstance(options, BasisOfTasks):
                    self._make_basis(name)
        for task in experiment.tasks:
            if task.finetuned is not None and not self._file(task.name).is_file():
                FinetunedTask.check(context, task.name, task.finetuned)

    def adopt(self, name: str, head: nn.Module) -> Iterator[Phase]:
        """The first task runs on the backbone without a mask."""
        network = self.context.network
        network.add_task(name, Identity(), head=head)
        network.freeze_task(name)
        return iter(())

    def learn(self, name: str) -> Iterator[Phase]:
        """Train a mask."""
        experiment, network = self.context.experiment, self.context.network
        config, source = self.context.task_data[name].config, experiment.backbone.source
        method, finetuned = config.method, None
        assert method is not None
        if config.finetuned is not None:
            finetuned = FinetunedTask(self.context, name, config.finetuned)
            finetuned.begin()
            self._finetuned = {name: finetuned}  # without those before, which take the memory of a network each
        with nullcontext() if source is None else source.lent(network):
            self._make_basis(method.basis_name())
            start_from = self._start_of(name)
            if start_from is not None:
                logger.info("%s: starts from the masks of %s", name, start_from)
            if finetuned is not None and finetuned.starts:
                finetuned.add()
            else:
                network.add_task(name, method, head=self.context.head(name), norm=config.norm, start_from=start_from)
        self._place(name)
        module = network.task_module(name)
        yield Phase(
            module=module,
            head=None if finetuned is not None and finetuned.starts else module.state.head,
            extra=lambda input, output: module.state.penalty(),
            objective=None if finetuned is None else finetuned.objective(),
            groups=groups_of(module),
            callbacks=[FlipLog(module.state)],
            start_value=None if finetuned is None else finetuned.start_value,
        )
        network.freeze_task(name)
        check_stored(network, name)
        if finetuned is not None:
            finetuned.end()

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

    def store(self, names: Sequence[str], metrics: Mapping[str, float | None], baseline: float | None) -> None:
        """Write the newest task's file into the bundle."""
        name = names[-1]
        task_data = self.context.task_data[name]
        info: dict[str, Any] = {"figures": dict(metrics), "baseline": baseline}  # the format's own keys
        if (side := measured_side(task_data.task, task_data.parts.test)) is not None:
            info["side"] = side
        if task_data.parts.test.white is not None:
            info["white"] = task_data.parts.test.white
        if (finetuned := self.finetuned(name)) is not None:
            info["finetuned"] = finetuned.model_dump(exclude={"not_kept"}, exclude_none=True)
        add_task_to_bundle(self._bundle, self.context.network, name, options=task_data.task.options(), info=info)

    def finetuned(self, name: str) -> FinetunedResult | None:
        """Of a task that this run has learned."""
        return self._finetuned[name].result() if name in self._finetuned else None

    def own_bytes(self, name: str) -> int:
        """The task's file."""
        return self._file(name).stat().st_size

    def shared_bytes(self) -> int:
        """The backbone, as it is stored."""
        return stored_bytes(self.context.network.backbone.state_dict())

    def relative_parameters(self) -> float:
        """The backbone, and masks, their numbers and the norm parameters of each task."""
        return relative_parameters(self.context.network)

    def density(self, name: str) -> float | None:
        """The fraction of ones over all binary masks."""
        return self.context.network.state(name).density()

    def load(self, names: Sequence[str]) -> None:
        """Load the finished tasks from the bundle."""
        for name in names:
            self.context.network.load_task(self._file(name), name=name)
        self.context.place(self.context.network)

    @property
    def _bundle(self) -> Path:
        return self.context.folder / "bundle"

    def _file(self, name: str) -> Path:
        return task_path(self._bundle, name)

    def _place(self, name: str) -> None:
        """Place a new task, with the bases: the backbone and the other tasks, maybe a thousand, are in their place."""
        for module in (self.context.network.state(name), *self.context.network.bases().values()):
            self.context.place(module)

    def _make_basis(self, name: str | None) -> None:
        """Make a basis of the experiment, unless a task before used it, or the bundle of the backbone has the very same."""
        network, experiment = self.context.network, self.context.experiment
        if name is None:
            return
        present = network.bases().get(name)
        if present is not None and (experiment.backbone.source is None or name not in experiment.bases):
            return
        options = experiment.bases[name]
        logger.info("basis %s: %s", name, options)
        if isinstance(options, BasisOfTasks):
            basis = basis_of_tasks(network, options.tasks, kind=options.kind)
        else:
            basis = Basis.random(network.layers(), **vars(options))
        if present is None:
            network.add_basis(name, basis)
        elif present.sha256 != basis.sha256:
            raise InputError(
                f"masks.bases.{name} is another one than the basis {name!r} that the bundle of the backbone has: give it another "
                f"name, or leave masks.bases.{name} out to take the bundle's"
            )

    def _start_of(self, name: str) -> str | None:
        """The task that this one starts from."""
        experiment, evaluator, task_data = self.context.experiment, self.context.evaluator, self.context.task_data[name]
        start = task_data.config.start_from
        if start != "nearest":
            return start
        input = evaluator.check_input(task_data.task, task_data.parts.train, experiment.evaluation.batch_size)
        return self.context.network.nearest_task(evaluator.placed(input))
