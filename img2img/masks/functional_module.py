"""A copy of the backbone's modules that runs with tensors it is given, so that no call touches the backbone itself."""

import copy
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from img2img.masks.activation_checkpointing import without_activation_checkpointing

EvalScope = Literal["all", "norm", "none"]
"""Which modules run in evaluation mode whatever the backbone's own flags say."""


class FunctionalModule:
    """A copy of a backbone's modules without a copy of its tensors: a call puts all the tensors that it runs with into it.

    A call that is broken off anywhere, by Ctrl-C or an error, may leave any of its tensors in here. That does no harm: the next
    call puts in all of its own, and the backbone never holds other tensors than its own. There is nothing to undo. The same
    is true of the modules' training flags, which are set for each call from the backbone's.

    Args:
        backbone: what it copies. Hooks that are registered on its modules are called here too.
        norm_modules: the names of its normalisation modules.
        separate_hooks: hooks that are registered on the modules in here stay in here.
    """

    def __init__(self, backbone: nn.Module, norm_modules: Collection[str], *, separate_hooks: bool = False) -> None:
        # What is already in the memo is not copied.
        memo: dict[int, Any] = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
        for module in backbone.modules():
            hooks = [value for name, value in vars(module).items() if name.endswith(_HOOKS) and isinstance(value, dict)]
            memo |= {id(value): value.copy() if separate_hooks else value for value in hooks}
        self.module: nn.Module = copy.deepcopy(backbone, memo)
        self._run: Callable[..., Any] = self._call
        self._slots = _slots(self.module)
        self._own = [table[leaf] for table, leaf, _ in self._slots]
        self._flags = [
            (ours, theirs, name in norm_modules)
            for (name, theirs), ours in zip(backbone.named_modules(), self.module.modules(), strict=True)
        ]

    def compile(self, **options: Any) -> None:
        """Compile the call with `torch.compile`: one graph serves all tensors of the same shapes and types."""
        self._run = torch.compile(self._call, **options)

    def __call__(
        self,
        tensors: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        eval_scope: EvalScope = "none",
        compiled: bool = False,
    ) -> Any:
        """The output with `tensors`, which are all of the backbone's, by name.

        Args:
            tensors: a tied one under its first name.
            args: the inputs.
            kwargs: further inputs.
            eval_scope: what runs in evaluation mode; the rest is in the backbone's mode.
            compiled: run the compiled call, if there is one; hooks are not called then.
        """
        for ours, theirs, norm in self._flags:
            mode = theirs.training and not (eval_scope == "all" or (norm and eval_scope == "norm"))
            if ours.training is not mode:
                ours.training = mode
        try:
            return without_activation_checkpointing(self._run if compiled else self._call, tensors, args, kwargs)
        finally:
            # Or the task's tensors would be kept in memory until the next call; no more hangs on it.
            for (table, leaf, _), tensor in zip(self._slots, self._own, strict=True):
                table[leaf] = tensor

    def _call(self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for table, leaf, name in self._slots:
            table[leaf] = tensors[name]
        return self.module(*args, **kwargs)


class AutocastUse:
    """Finds the weights that a call casts by autocast where they are used, once each.

    Such a weight may be given in autocast's type in the first place: the outputs are the same bit for bit. It is one of a layer
    of PyTorch's own that runs once in the call, inside of the autocast region. A weight that is used twice is none: the sum of
    its gradients would be rounded.

    Args:
        module: of which a call is watched; hooks are registered on it.
        names: of the weights to look at.
        dtype: autocast's type.
    """

    def __init__(self, module: nn.Module, names: Collection[str], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._uses: dict[str, list[bool]] = {}
        places = [name for _, _, name in _slots(module)]
        for name in names:
            owner, _, leaf = name.rpartition(".")
            layer = module.get_submodule(owner)
            # A subclass may do anything with its weight first.
            if leaf == "weight" and type(layer) in _CAST_WEIGHTS and places.count(name) == 1:
                uses = self._uses[name] = []
                layer.register_forward_pre_hook(lambda layer, args, uses=uses: uses.append(self._casts(args)))

    def _casts(self, args: tuple[Any, ...]) -> bool:
        return bool(args) and isinstance(args[0], Tensor) and autocast_dtype(args[0].device) == self._dtype

    def found(self) -> frozenset[str]:
        """Their names, after the call."""
        return frozenset(name for name, uses in self._uses.items() if uses == [True])


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type to which operations on `device` cast float32 tensors now; None outside of an autocast region."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


_CAST_WEIGHTS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
"""The layers whose call is one operation that autocast runs in its own type."""
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def _slots(module: nn.Module) -> list[tuple[MutableMapping[Any, Any] | list[Any], Any, str]]:
    """Every place in `module` that holds one of its tensors: the table, the key in it, the tensor's first name."""
    slots: list[tuple[MutableMapping[Any, Any] | list[Any], Any, str]] = []
    names: dict[int, str] = {}
    for module_name, owner in module.named_modules():
        prefix = module_name + "." if module_name else ""
        for table in (owner._parameters, owner._buffers):
            for leaf, tensor in table.items():
                if tensor is not None:
                    slots.append((table, leaf, names.setdefault(id(tensor), prefix + leaf)))
        if isinstance(owner, nn.RNNBase):  # its calls read this list, and not the parameters
            weights = owner._flat_weights
            slots.extend((weights, i, names[id(weight)]) for i, weight in enumerate(weights) if weight is not None)
    return slots
