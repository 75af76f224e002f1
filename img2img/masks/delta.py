"""A task from a network that was fine-tuned from the backbone: its weights' changes as signs and scales."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.masks.base import MaskMethod
from img2img.masks.layers import Layer, number_of_ones
from img2img.masks.methods.mixed import TrainableCopy
from img2img.masks.methods.signs import SignsMask, SignsMethod
from img2img.masks.methods.sparse_signs import SparseSigns
from img2img.masks.methods.supsup import above, cuts_at, in_memory
from img2img.masks.stored_tensors import head_tensors, matching
from img2img.masks.task_network import TaskNetwork
from img2img.masks.task_state import NormMode, TaskState
from img2img.masks.tensors import copy_into

SHARE = 0.1
"""The share of the weights that sparse signs move where nothing else is asked for."""


@dataclass(frozen=True)
class DeltaRow:
    """What the signs keep of the change of one layer.

    Attributes:
        layer: the weight's name in the backbone.
        weights: how many it has.
        moved: how many of them the task moves.
        change: `‖Δ‖²`, the squared norm of the change.
        left: `‖Δ - s ∘ T‖²`, what of it is missing.
    """

    layer: str
    weights: int
    moved: int
    change: float
    left: float


@dataclass(frozen=True)
class FinetunedDelta:
    """A task made of a fine-tuned network.

    Attributes:
        state: the task, not frozen: to be trained on, then frozen.
        rows: one for each weight that has signs.
        not_kept: of the tensors that differ and that no task has of its own, such as biases, the largest absolute difference
            by name; the task runs with the backbone's.
    """

    state: TaskState
    rows: list[DeltaRow]
    not_kept: dict[str, float]

    @property
    def moved(self) -> float:
        """The share of the weights with signs that move."""
        return sum(row.moved for row in self.rows) / max(1, sum(row.weights for row in self.rows))

    @property
    def explained(self) -> float | None:
        """`1 - ‖Δ - s ∘ T‖² / ‖Δ‖²` over all weights with signs; None where nothing changed."""
        change = sum(row.change for row in self.rows)
        return 1 - sum(row.left for row in self.rows) / change if change else None


@dataclass(frozen=True)
class FinetunedTensors:
    """The tensors of a fine-tuned network, checked against the backbone.

    Attributes:
        backbone: the backbone's, by their names there.
        head: the head's, by their names in the head.
    """

    backbone: dict[str, Tensor]
    head: dict[str, Tensor]

    def load_into(self, module: nn.Module, head: str | None) -> None:
        """Set the values of a plain copy of the network, whose head has the name `head`."""
        prefix = "" if head is None else head + "."
        module.load_state_dict(self.backbone | {prefix + name: tensor for name, tensor in self.head.items()})


def finetuned_tensors(network: TaskNetwork, state_dict: Mapping[str, Tensor], head: nn.Module | None) -> FinetunedTensors:
    """The tensors of a network that was fine-tuned from the backbone, after all checks.

    Args:
        network: with the backbone.
        state_dict: of the fine-tuned network: every tensor of the backbone's `state_dict`, and the head's under the head's name.
        head: a head of the shapes that are wanted, exactly when the network has one.

    Raises:
        InputError: a tensor is missing, unexpected, of another shape or not finite.
    """
    return FinetunedTensors(_backbone_tensors(network, state_dict), _head_tensors(network, state_dict, head))


@torch.no_grad()
def delta_from_finetuned(
    network: TaskNetwork,
    task: str,
    state_dict: Mapping[str, Tensor],
    *,
    method: MaskMethod | None = None,
    share: float | None = None,
    head: nn.Module | None = None,
    norm: NormMode = "own",
    keep_frozen: bool = False,
) -> FinetunedDelta:
    """Add a task that is near to a network which was fine-tuned from the backbone: `W + s ∘ T ≈ W_ft`.

    With `Δ = W_ft - W`, sparse signs are those of the largest `|Δ|`, dense ones those of all, `sign(0) = +1`. `s` is the
    least-squares optimum, the mean of the kept `|Δ|` of its channel or layer. Normalisation state and head are the fine-tuned
    network's. With batch normalisation that is a start and no more: average the statistics anew and train the task on.

    Args:
        network: with the backbone that the other network was fine-tuned from.
        task: the new task's name.
        state_dict: of the fine-tuned network: every tensor of the backbone's `state_dict`, and the head's under the head's name.
        method: `SparseSigns` (by default), `DenseSigns`, or a `Mixed` of one of them, whose copies are the network's weights.
        share: the share of the weights that sparse signs move: over the network, or in each layer, as the method's `share_of`
            says; by default the method's `share`, or a tenth. Equal changes count in the order of the layers, then row-major.
            What did not change does not move.
        head: the task's head, exactly when the network has one; the state dict's values are written into it.
        norm: what of the normalisation is the task's own, see `TaskNetwork.add_task`.
        keep_frozen: whether tensors that no task has of its own, such as biases, may differ; the task keeps the backbone's.

    Raises:
        InputError: a tensor is missing, unexpected, of another shape or not finite; a frozen one differs; or the name, the
            method, the share or the head do not fit. The network is as it was.
    """
    method = SparseSigns() if method is None else method
    signs = method.inner
    if not isinstance(signs, SignsMethod):
        raise InputError(f"delta_from_finetuned got the method {signs.name!r}: expected sparse_signs or dense_signs")
    tensors = finetuned_tensors(network, state_dict, head)
    found = tensors.backbone
    not_kept = _frozen_differences(network, found, norm)
    if not_kept and not keep_frozen:
        some = ", ".join(f"{name} (by up to {value:.3g})" for name, value in list(not_kept.items())[:3])
        raise InputError(
            f"{len(not_kept)} tensors that no task has of its own differ from the backbone's: {some}. Fine-tune without them, or "
            "leave them at the backbone's values (keep_frozen=True; --keep-frozen)"
        )
    moving = _share(signs, share)

    state = network.add_task(task, method, head=head, norm=norm)
    if head is not None:
        copy_into(head, tensors.head)
    for name, tensor in state.norm_tensors().items():
        if name in found:  # all but buffers that no state dict has
            tensor.copy_(found[name])
    layers, deltas = network.layers(), {}
    for name, mask in state.named_masks():
        if isinstance(mask, TrainableCopy):
            mask.delta.copy_(_difference(found[name], layers[name].weight))
        else:
            deltas[name] = _difference(found[name], layers[name].weight)
    kept = {name: torch.ones_like(delta, dtype=torch.bool) for name, delta in deltas.items()}
    if moving is not None:
        kept = _largest(deltas, moving, by_layer=isinstance(signs, SparseSigns) and signs.share_of == "layer")
    rows = []
    for name, mask in state.named_masks():
        if isinstance(mask, SignsMask):
            rows.append(_set_signs(name, mask, layers[name], deltas[name], kept[name], signs))
    return FinetunedDelta(state, rows, not_kept)


def _set_signs(name: str, mask: SignsMask, layer: Layer, delta: Tensor, kept: Tensor, method: SignsMethod) -> DeltaRow:
    """Set the signs of the kept changes and their scales."""
    codes = torch.where(kept, torch.where(delta >= 0, 1, -1), 0).to(torch.int8)
    sizes, count = layer.channel_sums(delta.abs() * kept), layer.channel_sums(kept.float())
    if method.scale_per == "layer":
        sizes, count = sizes.sum().view(1), count.sum().view(1)
    # What moves nothing yet starts like a fresh one, or its scores would get no gradient.
    scale = torch.where(count > 0, sizes / count.clamp_min(1), method.scales(layer))
    mask.set_signs(codes, scale)
    written = mask.values()["scale"]
    left = delta - (layer.per_channel(written) if len(written) == layer.out_channels else written) * codes
    squares = [x.double().square().sum().item() for x in (delta, left)]
    return DeltaRow(name, delta.numel(), int(kept.sum()), *squares)


def _largest(deltas: Mapping[str, Tensor], share: float, *, by_layer: bool) -> dict[str, Tensor]:
    """Where the largest changes are, without those of 0."""
    kept: dict[str, Tensor] = {}
    for group in [[name] for name in deltas] if by_layer else [list(deltas)]:
        sizes = {name: deltas[name].abs() for name in group}
        vectors = [in_memory(size) for size in sizes.values()]
        cuts = cuts_at(vectors, number_of_ones(share, sum(map(len, vectors)))) if group else []
        kept |= {name: above(sizes[name], cut) & (sizes[name] > 0) for name, cut in zip(group, cuts, strict=True)}
    return kept


def _share(method: SignsMethod, share: float | None) -> float | None:
    """The share of the weights to move; None where the method moves all."""
    if not isinstance(method, SparseSigns):
        if share is not None:
            raise InputError(f"delta_from_finetuned share={share}: {method.name} moves every weight; leave it out")
        return None
    if share is None:
        return SHARE if method.share is None else method.share
    if not 0 < share <= 1:
        raise InputError(f"delta_from_finetuned share={share}: expected a fraction above 0 and up to 1, such as 0.1")
    if method.share is not None and share > method.share:
        raise InputError(
            f"delta_from_finetuned share={share} is more than the method's own share={method.share}: lower it, or leave it out"
        )
    return share


def _difference(finetuned: Tensor, weight: Tensor) -> Tensor:
    """`W_ft - W`, float32, in the memory format and on the device of `weight`; computed in the wider of the two types."""
    wide = torch.promote_types(torch.promote_types(finetuned.dtype, weight.dtype), torch.float32)
    delta = torch.empty_like(weight, dtype=wide, requires_grad=False).copy_(finetuned)
    return delta.sub_(weight).float()


def _backbone_tensors(network: TaskNetwork, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the state dict that are the backbone's, each under its first name."""
    expected = {name: t for name, t in network.backbone.state_dict().items() if isinstance(t, Tensor)}
    if odd := next((name for name, value in state_dict.items() if not isinstance(value, Tensor)), None):
        raise InputError(
            f"the state dict has {odd!r}, a {type(state_dict[odd]).__name__}: expected tensors by name, which checkpoints often "
            "have under a key of their own, such as checkpoint['state_dict']"
        )
    prefix = None if network.head_name is None else network.head_name + "."
    got = {name: t for name, t in state_dict.items() if prefix is None or not name.startswith(prefix)}
    hint = ""
    if wrong := next((name for name in got if name not in expected), None):
        if inner := next((name for name in expected if wrong.endswith("." + name)), None):
            hint = f"; its names begin with {wrong.removesuffix(inner)!r}: remove that"
        raise InputError(
            f"the state dict has {wrong!r}, which this backbone has not (head={network.head_name!r}){hint}: expected the state "
            "dict of a network that was fine-tuned from it"
        )
    if missing := [name for name in expected if name not in got]:
        raise InputError(
            f"the state dict lacks {len(missing)} tensors of the backbone, such as {missing[0]!r}: expected the state dict of a "
            "network that was fine-tuned from it, all of it"
        )
    matching("the state dict", got, expected)
    _check_finite(got)
    first: dict[int, str] = {}
    for name, tensor in expected.items():
        known = first.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if known != name and expected[known].shape == tensor.shape and not torch.equal(got[known], got[name]):
            raise InputError(
                f"{known!r} and {name!r} are one tensor in the backbone and differ in the state dict: expected a network of the "
                "same tied weights"
            )
    return got


def _head_tensors(network: TaskNetwork, state_dict: Mapping[str, Tensor], head: nn.Module | None) -> dict[str, Tensor]:
    """The head's tensors from the state dict, by their names in the head."""
    if head is None or network.head_name is None:
        return {}  # add_task checks that there is one exactly when there has to be
    prefix = network.head_name + "."
    got = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
    try:
        found = matching(f"the state dict's head {network.head_name!r}", got, head_tensors(head))
    except InputError as error:
        raise InputError(f"{error}; expected the head of a network for the same kind of task, with the same classes") from error
    _check_finite({prefix + name: tensor for name, tensor in found.items()})
    return found


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    if odd := [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise InputError(f"{odd[0]} of the state dict has values that are no finite numbers: choose an earlier checkpoint")


def _frozen_differences(network: TaskNetwork, found: Mapping[str, Tensor], norm: NormMode) -> dict[str, float]:
    """The largest absolute difference of each tensor that no task has of its own, where there is one."""
    frozen, roles = network.frozen_tensors(), network.roles
    different: dict[str, float] = {}
    own = {name for tensors in network.norm_tensors(norm) for name in tensors}
    of_norm = tuple(name for name in roles.norm_parameters + roles.norm_buffers if name not in own)
    for name in roles.fixed_parameters + roles.fixed_buffers + of_norm:
        if name in found and found[name].numel():
            gap = (found[name].to(frozen[name].device).double() - frozen[name].double()).abs().max().item()
            if gap > 0:
                different[name] = gap
    return different
