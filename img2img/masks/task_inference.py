"""Which task a batch belongs to, when nobody says: from the outputs' certainty, or from the statistics inside the network.

| function | needs | passes through the network |
| --- | --- | --- |
| `by_entropy` | outputs over classes | one a task |
| `by_gradient` | outputs over classes, heads of one kind | one forwards and backwards, or log2 K of them |
| `by_norm_statistics` | running statistics of each task's own | one a task |
| `by_basis` | labels and a basis of masks | as many training steps as given |

The whole batch is taken to be of one task. The network is as it was afterwards, and runs in evaluation mode meanwhile (`by_basis`
trains a task of its own and deletes it). The functions hold the network's lock.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_map

from img2img.errors import InputError
from img2img.masks.entropy_gradient import check_heads, entropy, entropy_gradients
from img2img.masks.methods.impresslearn import ImpressLearn
from img2img.masks.task_network import TaskNetwork
from img2img.masks.task_state import WITHOUT_STATISTICS, NormMode


@dataclass(frozen=True)
class InferredTask:
    """A task found.

    Attributes:
        task: the best.
        scores: every task's score, best first. What a score is, and whether low or high is good, the function says.
    """

    task: str
    scores: dict[str, float]


def by_entropy(network: TaskNetwork, *args: Any, tasks: Sequence[str] | None = None, **kwargs: Any) -> InferredTask:
    """Run every task; the one whose outputs are most certain wins (SupSup, Wortsman et al. 2020).

    Args:
        network: its outputs are logits over classes on axis 1: (N, C), or (N, C, H, W) for segmentation.
        args: the batch, as for a call.
        tasks: the candidates, all by default.
        kwargs: further inputs.

    Returns:
        Scores are entropies of the softmax, averaged over samples and places, divided by `log C` so that tasks with different
        numbers of classes compare: 0 is certain, 1 knows nothing, lowest first.

    Raises:
        InputError: there is no such task, or an output has no classes.
    """
    names = _candidates(network, tasks)
    with _mode(network, training=False), torch.no_grad():
        return _ranked({task: entropy(network(*args, task=task, **kwargs), task).item() for task in names})


def by_gradient(
    network: TaskNetwork, *args: Any, tasks: Sequence[str] | None = None, halving: bool = False, **kwargs: Any
) -> InferredTask:
    """Superpose all tasks and follow the entropy downhill (SupSup, Wortsman et al. 2020).

    The network runs once with `Σ_i α_i Weff_i`, `α_i = 1/K`. H is the entropy of its outputs, and the task with the lowest
    `∂H/∂α_i` wins: "one-shot". The effective weights of any method are superposed, `W ∘ Σ_i α_i M_i` for Piggyback and SupSup,
    and whatever else is a task's own with them: normalisation parameters, running statistics and heads; else those of one task
    would stand for all. The gradient is exact: `∂H/∂α_i = <∂H/∂T, T_i>` summed over every superposed tensor T, so that only the
    sum and one task's tensors are needed at a time (and what the network's cache keeps within its bound).

    It works the better, the less certain the superposition is: a few times as many outputs as classes, the rest never a target
    (the paper's superfluous neurons), help much; without them one task may win for every batch, and `halving` less often errs.

    Args:
        network: its outputs are logits over classes on axis 1: (N, C), or (N, C, H, W) for segmentation.
        args: the batch, as for a call.
        tasks: the candidates, all by default.
        halving: "binary": the better half (rounded up) of the tasks goes on, at equal α again, until one is left.
        kwargs: further inputs.

    Returns:
        Scores are `∂H/∂α_i`, H normalised as in `by_entropy`, lowest first. With `halving` tasks that went on longer come first,
        and the scores are those of the last pass that a task took part in.

    Raises:
        InputError: there is no such task, an output has no classes, or the tasks' heads cannot be superposed.
    """
    left = list(_candidates(network, tasks))
    check_heads(network, left)
    found: dict[str, float] = {}
    with _mode(network, training=False), torch.inference_mode(False):
        # Inference tensors cannot take part in a backward pass.
        args, kwargs = tree_map(lambda t: t.clone() if isinstance(t, Tensor) and t.is_inference() else t, (args, kwargs))
        while True:
            ranked = _ranked(entropy_gradients(network, left, args, kwargs)).scores
            found = ranked | {task: score for task, score in found.items() if task not in ranked}
            if not halving or len(left) == 1:
                return InferredTask(next(iter(found)), found)
            left = list(ranked)[: math.ceil(len(left) / 2)]


def by_norm_statistics(network: TaskNetwork, *args: Any, tasks: Sequence[str] | None = None, **kwargs: Any) -> InferredTask:
    """Compare what each normalisation layer sees with what it saw when the task was trained. Outputs of any kind will do.

    The batch runs through each task's network. For every layer with running statistics, the batch's mean and variance of each
    channel of the layer's input are compared with the task's `running_mean` and `running_var`, as normal distributions, by
    `KL(batch ‖ task)`, averaged over channels. The score is the geometric mean over the first half of the layers, in the order in
    which they run: divergences of different layers differ by orders of magnitude, and the later ones tell more of what a task
    makes of its inputs than of what they are. (Of ten ways to sum up the layers this one was best on validation images of
    the demo's tasks: 0.87 of single images right in the tasks' mean, against 0.56 for the plain mean of all layers.)

    The tasks' networks differ in the scale of what they compute, so likelihoods do not compare between them. The divergence does:
    it is the same when a channel and its statistics are scaled or shifted together. Of the two directions it is the one that
    bears small batches: their variance may be far too low, and here only its logarithm is taken, while the other direction and
    the symmetric sum divide by it.

    What is left is each task's own level, the divergence of a batch that does belong to it. One part comes from the batch: about
    one over the number of independent values that a channel has in it, so larger batches help. The other comes from the
    statistics: running averages lag behind weights that change in large steps, and may then be nearer to another task's data.
    Training should end with small steps, or with a few passes in training mode that change nothing else.

    Args:
        network: tasks must have running statistics of their own (`norm="own"` or `"statistics"`).
        args: the batch, as for a call.
        tasks: the candidates, all by default.
        kwargs: further inputs.

    Returns:
        Scores are divergences, lowest first.

    Raises:
        InputError: there is no such task, the backbone keeps no running statistics, or a task has none of its own.
    """
    names = _candidates(network, tasks)
    suffix = ".running_mean"
    layers = [("." + name).removesuffix(suffix)[1:] for name in network.roles.norm_buffers if ("." + name).endswith(suffix)]
    if not layers:
        raise InputError(
            "the backbone keeps no running statistics (batch or instance normalisation with track_running_stats): use by_entropy"
        )
    scores, seen = {}, list[Tensor]()

    def compare(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(_divergence(module, inputs[0]))

    with _mode(network, training=False), torch.no_grad():
        functional = network.functional_module_with_hooks(dict.fromkeys(layers, compare))
        for task in names:
            state = network.state(task)
            if state.norm_mode in WITHOUT_STATISTICS:
                raise InputError(
                    f"task {task!r} has no running statistics of its own (norm={state.norm_mode!r}): name the tasks that have "
                    "some (tasks=...), or use by_entropy"
                )
            seen.clear()
            network.run_with(state.norm_tensors() | network._effective(task, state), args, kwargs, functional=functional)
            early = torch.stack(seen[: (len(seen) + 1) // 2])
            scores[task] = early.clamp_min(torch.finfo(early.dtype).tiny).log().mean().exp().item()
    return _ranked(scores)


def by_basis(
    network: TaskNetwork,
    basis: str,
    loss: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    *,
    steps: int,
    lr: float = 2e-3,
    penalty_weight: float = 0.0,
    head: nn.Module | None = None,
    norm: NormMode = "statistics",
) -> InferredTask:
    """Find the member of a basis that labelled batches belong to: ImpressLearn's basis-GN setting (section 4, appendix A.3).

    A temporary task combines all masks of the basis, starting equally weighted; its coefficients α are trained on the labels.
    The mask with the largest `|α|`, averaged over layers, wins. The defaults are those of the paper for MNIST: RMSprop,
    0.002, no penalty.

    Args:
        network: holds the basis.
        basis: its name, see `MaskedNetwork.add_basis`.
        loss: `loss(outputs, targets)`, a scalar.
        batches: pairs of inputs and targets; gone through again when `steps` is more than there are.
        steps: how many training steps.
        lr: RMSprop's learning rate.
        penalty_weight: λ of the penalty `λ Σ_layers (Σ_i |α_i| - 1)^2` (equation 2).
        head: the temporary task's head, trained too; required exactly when the network has one. It is changed.
        norm: what of the normalisation is the temporary task's own, as for `add_task`.

    Returns:
        Scores are mean `|α|`, highest first, by the basis's names.

    Raises:
        InputError: there is no such basis, or no batches or steps.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: expected at least one training step")
    task = "inferred"
    while task in network.tasks():
        task += "_"
    with _mode(network, training=True), torch.inference_mode(False), torch.enable_grad():
        state = network.add_task(task, ImpressLearn(basis=basis, penalty_weight=penalty_weight), head=head, norm=norm)
        try:
            optimiser = torch.optim.RMSprop([p for p in state.parameters() if p.requires_grad], lr)
            for inputs, targets in _repeated(batches, steps):
                optimiser.zero_grad()
                cost = loss(network(inputs, task=task), targets)
                penalty = state.penalty()
                (cost if penalty is None else cost + penalty).backward()
                optimiser.step()
            alphas = [mask.values()["alpha"] for _, mask in state.named_masks() if "alpha" in mask.values()]
            means = torch.stack(alphas).abs().mean(0).tolist()
        finally:
            network.delete_task(task)
    return _ranked(dict(zip(network.bases()[basis].names, means, strict=True)), highest=True)


# ---------------------------------------------------------------------- how often it is right


@dataclass(frozen=True)
class TaskAccuracy:
    """How often one task was found: `right` of `batches`, and their ratio."""

    task: str
    batches: int
    right: int
    accuracy: float


@dataclass(frozen=True)
class Accuracy:
    """How often tasks were found.

    Attributes:
        accuracy: over all batches.
        rows: by task.
        confusion: `confusion[task][inferred]`, how many batches; those who never occur are 0.
    """

    accuracy: float
    rows: list[TaskAccuracy]
    confusion: dict[str, dict[str, int]]


def accuracy(infer: Callable[[Any], InferredTask], batches: Mapping[str, Iterable[Any]]) -> Accuracy:
    """How often `infer` finds the task of a batch.

    Args:
        infer: such as `functools.partial(by_entropy, network)`.
        batches: each task's batches, of which each is passed to `infer`.

    Raises:
        InputError: a task has no batches.
    """
    found = {task: [infer(x).task for x in of_task] for task, of_task in batches.items()}
    empty = [task for task, inferred in found.items() if not inferred]
    if empty or not found:
        raise InputError(f"no batches {f'of {empty[0]!r}' if empty else 'at all'}: give at least one for every task")
    columns = dict.fromkeys([*found, *(name for inferred in found.values() for name in inferred)])
    rows = [TaskAccuracy(t, len(found[t]), found[t].count(t), found[t].count(t) / len(found[t])) for t in found]
    confusion = {task: {column: inferred.count(column) for column in columns} for task, inferred in found.items()}
    return Accuracy(sum(row.right for row in rows) / sum(row.batches for row in rows), rows, confusion)


# ---------------------------------------------------------------------- parts


def _candidates(network: TaskNetwork, tasks: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(tasks, str):
        raise InputError(f"tasks={tasks!r}: expected a sequence of names to choose from")
    names = network.tasks() if tasks is None else tuple(dict.fromkeys(tasks))
    if not names:
        raise InputError("there are no tasks to choose from: add or load some first")
    unknown = [name for name in names if name not in network.tasks()]
    if unknown:
        network.state(unknown[0])  # raises, and names those there are
    return names


def _ranked(scores: Mapping[str, float], *, highest: bool = False) -> InferredTask:
    for task, score in scores.items():
        if not math.isfinite(score):
            raise InputError(f"the score of task {task!r} is {score}: look for NaN or infinite values in the batch and the task")
    ordered = dict(sorted(scores.items(), key=lambda item: item[1], reverse=highest))
    return InferredTask(next(iter(ordered)), ordered)


@contextmanager
def _mode(network: TaskNetwork, *, training: bool) -> Iterator[None]:
    """The network in training or evaluation mode, alone with it; every module's flag restored."""
    with network._lock:
        flags = [(module, module.training) for module in network.modules()]
        if all(flag == training for _, flag in flags):
            yield  # nothing to be undone
            return
        was_training = network.training
        network.train(training)
        try:
            yield
        finally:
            if was_training:
                network.train()  # drops what was cached, as a network in training must
            for module, flag in flags:
                module.training = flag


def _divergence(module: nn.Module, x: Tensor) -> Tensor:
    """`KL(batch ‖ running statistics)` of the channels of a normalisation's input, averaged."""
    x = x.float()
    # Instance normalisation's running statistics are averages over the samples' own.
    axes = [axis for axis in range(x.ndim) if axis > 1 or (axis == 0 and not isinstance(module, _InstanceNorm))]
    values = math.prod(x.shape[axis] for axis in axes)
    variance, mean = torch.var_mean(x, axes, correction=min(1, values - 1))
    if mean.ndim == 2:
        variance, mean = variance.mean(0), mean.mean(0)
    eps = getattr(module, "eps", 1e-5)
    running_mean, running_variance = (module.get_buffer(f"running_{part}").float() for part in ("mean", "var"))
    ratio = (variance + eps) / (running_variance + eps)
    shift = (mean - running_mean).square() / (running_variance + eps)
    return ((ratio - ratio.log() - 1 + shift) / 2).mean()


def _repeated(batches: Iterable[tuple[Any, Any]], steps: int) -> Iterator[tuple[Any, Any]]:
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1
        if done == before:
            raise InputError(
                f"the batches ended after {done} of {steps} steps: give more, or a list or loader, which can start again"
            )
