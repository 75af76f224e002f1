"""The frozen backbone: tensors that are read, and calls with other tensors in their place."""

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from img2img.errors import InputError, first_line
from img2img.masks.functional_module import AutocastUse, EvalScope, FunctionalModule, autocast_dtype
from img2img.masks.instance_norm import use_instance_statistics
from img2img.masks.layers import IsNorm, Layer, Selection, as_select, assign_roles, describe_layers
from img2img.masks.maskable import check_copyable, check_selection
from img2img.masks.task_state import NormMode
from img2img.masks.tensors import all_tensors, detached, hash_tensors


class FrozenBackbone(nn.Module):
    """A copy of a module that never changes and that runs with a task's tensors in place of its own.

    Args:
        backbone: any module; it is copied.
        head: the name of the submodule that tasks replace; None for no head.
        select: which parameters are masked.
        is_norm: which modules are normalisation.
        strict: refuse a selection of which a part fits nothing, see `maskable.check_selection`.

    Attributes:
        backbone: the copy, with an Identity in the head's place.
        head_name: the name given.
        roles: what each of its tensors is.
        backbone_sha256: the hash of its values when it was made.
    """

    _frozen: dict[str, Tensor] | None
    _watched: list[Tensor]
    _written: list[int]
    _layers: dict[str, Layer] | None
    _functional: dict[bool, FunctionalModule]
    _autocast: dict[torch.dtype, frozenset[str]]

    def __init__(self, backbone: nn.Module, head: str | None, select: Selection, is_norm: IsNorm, *, strict: bool = True) -> None:
        super().__init__()
        if head is not None and head not in dict(backbone.named_modules()):
            children = [name for name, _ in backbone.named_children()]
            raise InputError(f"head={head!r} is no submodule of the backbone; its children are {children}")
        check_copyable(backbone)
        try:
            backbone = copy.deepcopy(backbone).requires_grad_(False)
            for module in backbone.modules():
                if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                    module.sparse = False  # the gradient of a frozen weight goes to masks, which are dense
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"the backbone cannot be copied ({first_line(error)}): remove what is no part of the network from it"
            ) from error
        if head is not None:
            backbone.set_submodule(head, nn.Identity())
        self.backbone = backbone
        self.head_name = head
        self.roles = assign_roles(backbone, as_select(select), is_norm)
        if strict:
            check_selection(backbone, select, self.roles.masked, head)
        # Names and no predicate, which may be a function that cannot be pickled.
        self._norm_names = tuple(name for name, module in backbone.named_modules() if is_norm(name, module))
        self._lock = threading.RLock()
        self.backbone_sha256 = self.hash_backbone()
        self._compile_options: dict[str, Any] | None = None
        self._head_checked = head is None
        self._autocast = {}
        self._reset_tensors()

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the backbone without autograd history, gathered once."""
        with self._lock:
            if self._frozen is None:
                frozen = detached(all_tensors(self.backbone))
                self._watched = [tensor for tensor in frozen.values() if not tensor.is_inference()]
                self._written = _versions(self._watched)
                self._frozen = frozen  # last: whoever interrupts this finds all of it or nothing
            return self._frozen

    def norm_modules(self) -> tuple[str, ...]:
        """The names of the normalisation modules."""
        return self._norm_names

    def masked_weights(self) -> dict[str, Tensor]:
        """The backbone's weights that are masked, by name, without autograd history; the tensors themselves."""
        frozen = self.frozen_tensors()
        return {name: frozen[name] for name in self.roles.masked}

    def norm_tensors(self, norm: NormMode) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The backbone's normalisation parameters and buffers that are a task's own under `norm`."""
        tensors, roles = self.frozen_tensors(), self.roles
        parameters = roles.norm_parameters if norm in ("own", "instance") else ()
        buffers = roles.norm_buffers if norm in ("own", "statistics") else ()
        return {n: tensors[n] for n in parameters}, {n: tensors[n] for n in buffers}

    def layers(self) -> dict[str, Layer]:
        """The masked weights with what is known of their layers, by name."""
        with self._lock:
            if self._layers is None:
                self._layers = describe_layers(self.backbone, self.roles.masked, lambda name, _: name in self._norm_names)
            return self._layers

    def hash_backbone(self) -> str:
        """The SHA-256 of the backbone as it is now, without its head; `backbone_sha256` is the one at construction."""
        with self._lock:
            return hash_tensors(all_tensors(self.backbone).items())

    def copy_backbone(self, head: nn.Module | None = None) -> nn.Module:
        """An ordinary module with the backbone's weights and `head` (used as it is) in its place; it shares nothing else."""
        with self._lock:
            plain = copy.deepcopy(self.backbone)
        if self.head_name is not None and head is not None:
            plain.set_submodule(self.head_name, head)
        return plain

    # ------------------------------------------------------------------ calls

    def run_with(
        self,
        task_tensors: Mapping[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        eval_scope: EvalScope = "none",
        by_instance: bool = False,
        compiled: bool = False,
        functional: FunctionalModule | None = None,
    ) -> Any:
        """The backbone's output with `task_tensors` in place of the backbone's tensors of those names; without a head.

        Whatever the pass writes into a buffer that is not in `task_tensors` is discarded.

        Args:
            task_tensors: tensors by their names in the backbone.
            args: the inputs.
            kwargs: further inputs.
            eval_scope: the modules that run in evaluation mode; the others are in the mode that they are in.
            by_instance: batch normalisation uses each image's own statistics.
            compiled: run the compiled call, if there is one; hooks are not called then.
            functional: where it runs, see `functional_module_with_hooks`; by default the one that is kept for it.

        Raises:
            RuntimeError: the call, whether it ended by an error or not, has changed the backbone.
        """
        frozen = self.frozen_tensors()
        if not torch.is_grad_enabled():  # PyTorch takes other kernels of linear layers for weights that require grad, even so
            task_tensors = {n: t.detach() if t.requires_grad else t for n, t in task_tensors.items()}
        buffers = self.roles.fixed_buffers + self.roles.norm_buffers
        tensors = frozen | {n: frozen[n].clone() for n in buffers if n not in task_tensors} | dict(task_tensors)
        with self._lock:
            try:
                if functional is not None:
                    output = functional(tensors, args, kwargs, eval_scope=eval_scope)
                elif not self._head_checked or self._autocast_is_new():
                    output = self._run_and_look(tensors, args, kwargs, eval_scope, by_instance)
                else:
                    # Taken away meanwhile: a call within this one, by a hook, gets another.
                    kept = self._functional.pop(by_instance, None) or self._new_functional_module(by_instance)
                    try:
                        output = kept(tensors, args, kwargs, eval_scope=eval_scope, compiled=compiled)
                    finally:
                        self._functional[by_instance] = kept
            except BaseException as error:
                self._check_whole(error)
                raise
            self._check_whole()
            return output

    def autocast_types(self) -> dict[str, torch.dtype]:
        """The types to which autocast casts masked weights that are used once, by name; empty outside of autocast regions.

        A call has shown which these are. A backbone that calls its layers in another way each time keeps to what was seen first.
        """
        dtype = self._autocast_dtype()
        return {} if dtype is None else dict.fromkeys(self._autocast.get(dtype, ()), dtype)

    def _autocast_dtype(self) -> torch.dtype | None:
        weight = next((self.frozen_tensors()[name] for name in self.roles.masked), None)
        return None if weight is None or weight.dtype != torch.float32 else autocast_dtype(weight.device)

    def _autocast_is_new(self) -> bool:
        dtype = self._autocast_dtype()
        return dtype is not None and dtype not in self._autocast

    def _run_and_look(
        self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], eval_scope: EvalScope, by_instance: bool
    ) -> Any:
        """The first call, and the first under autocast: checks where the head is, and notes what autocast does."""
        functional = FunctionalModule(self.backbone, self._norm_names, separate_hooks=True)
        if by_instance:
            use_instance_statistics(functional.module)
        passed: list[Any] = []
        if self.head_name is not None:
            slot = functional.module.get_submodule(self.head_name)
            slot.register_forward_hook(lambda module, inputs, output: passed.append(output))
        dtype = self._autocast_dtype()
        float32 = [name for name in self.roles.masked if tensors[name].dtype == torch.float32]
        use = None if dtype is None else AutocastUse(functional.module, float32, dtype)
        features = functional(tensors, args, kwargs, eval_scope=eval_scope)
        if self.head_name is not None and (len(passed) != 1 or passed[0] is not features):
            raise InputError(
                f"head={self.head_name!r} is not the last operation of the backbone, which returned something else than "
                "its output: wrap the backbone so that the head comes last, or use head=None"
            )
        self._head_checked = True
        if use is not None and dtype is not None:
            self._autocast[dtype] = use.found()
        return features

    def _check_whole(self, error: BaseException | None = None) -> None:
        """Raise if something wrote into the backbone's tensors; all are looked at, and their values only if that shows one."""
        if self._frozen is None or (versions := _versions(self._watched)) == self._written:
            return
        if self.hash_backbone() != self.backbone_sha256:
            what = "" if error is None else f", or what ended this call ({type(error).__name__}),"
            raise RuntimeError(
                f"the backbone is no longer what it was when this network was made: a layer{what} wrote into its weights. Make "
                "or load the network again"
            ) from error
        self._written = versions

    def _new_functional_module(self, by_instance: bool) -> FunctionalModule:
        functional = FunctionalModule(self.backbone, self._norm_names)
        if by_instance:
            use_instance_statistics(functional.module)
        if self._compile_options is not None:
            functional.compile(**self._compile_options)
        return functional

    def functional_module_with_hooks(self, hooks: Mapping[str, Callable[..., Any]]) -> FunctionalModule:
        """What `run_with` may run on, with forward pre-hooks by module name that are called there and nowhere else."""
        functional = FunctionalModule(self.backbone, self._norm_names, separate_hooks=True)
        for name, hook in hooks.items():
            functional.module.get_submodule(name).register_forward_pre_hook(hook)
        return functional

    def compile(self, **options: Any) -> None:
        """Compile the backbone's call with `torch.compile`: one graph serves every task, since tasks differ in tensors alone."""
        with self._lock:
            self._compile_options, self._functional = options, {}

    # ------------------------------------------------------------------ module plumbing

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        with self._lock:
            self._reset_tensors()
            return super()._apply(fn, recurse)

    def _reset_tensors(self) -> None:
        """Forget what was derived from the tensors: they moved, or this is a copy."""
        self._frozen = None
        self._layers = None
        self._functional = {}

    def __getstate__(self) -> dict[str, Any]:
        # What is copied: no lock, nothing derived, and a copy is not compiled.
        state = self.__dict__.copy()
        for key in ("_lock", "_cache", "_frozen", "_watched", "_written", "_layers", "_functional"):
            state.pop(key, None)
        return state | {"_compile_options": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()
        self._reset_tensors()


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    """Counters of the writes into each tensor."""
    return [tensor._version for tensor in tensors]
