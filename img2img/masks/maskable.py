"""What of a backbone can be masked: what cannot, and selections that pick nothing, are refused and named."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from img2img.errors import InputError
from img2img.masks.layers import MASKABLE, WEIGHTS, Selection, is_weight, parts_of

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OLD_STYLE = {
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("pruning", "torch.nn.utils.prune.remove"),
}
_LAYERS = "convolutions, linear, bilinear, embedding and attention layers"


def check_copyable(backbone: nn.Module) -> None:
    """Refuse a backbone whose tensors have no values yet, or cannot be copied and exchanged.

    Raises:
        InputError: names the first.
    """
    held = {id(tensor): name for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())}
    for module_name, module in backbone.named_modules():
        prefix = module_name + "." if module_name else ""
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if tensors and isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{module_name or 'the module'} of the backbone is compiled by torch.jit, whose weights cannot be exchanged: "
                "give it before it was scripted or traced"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise InputError(
                f"{module_name or 'the embedding'} of the backbone has max_norm={module.max_norm:g}, so that calls change its "
                "weights: scale them once and set max_norm to None"
            )
        for leaf, tensor in tensors:
            if is_lazy(tensor):
                raise InputError(
                    f"{prefix}{leaf} of the backbone has no shape yet (a lazy module): run the backbone once on a batch first"
                )
            if tensor.is_meta:
                raise InputError(f"{prefix}{leaf} of the backbone has no values (the meta device): load its weights first")
            if tensor.layout != torch.strided:
                raise InputError(f"{prefix}{leaf} of the backbone is of the layout {tensor.layout}: make it dense (to_dense())")
        for leaf, value in vars(module).items():
            registered = leaf in ("_parameters", "_buffers") or isinstance(module, nn.RNNBase)  # which masked calls know
            if not registered and (name := _hidden_in(value, held)):
                raise InputError(
                    f"{prefix}{leaf} of the backbone holds {name} a second time, out of sight: a task would have its own values "
                    f"in one place and the backbone's in the other; give the module itself ({leaf} = [layer]), and take its "
                    "weight where it is used"
                )
            if isinstance(value, Tensor) and not value.is_leaf:
                why, remedy = _computed(module, leaf) or ("has a gradient history", f"detach it ({leaf} = {leaf}.detach())")
                raise InputError(f"{prefix}{leaf} of the backbone {why}, so it cannot be frozen and copied: {remedy}")


def _hidden_in(value: Any, held: Mapping[int, str]) -> str | None:
    """The name of a parameter or buffer that a plain list, tuple or dict of a module holds as well."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((held[id(each)] for each in values if isinstance(each, Tensor) and id(each) in held), None)


def check_selection(backbone: nn.Module, selection: Selection, masked: Sequence[str], head: str | None) -> None:
    """Refuse what would leave weights unmasked without a word.

    Args:
        backbone: without its head.
        selection: what chose `masked`; a function of the user's own may leave out what it likes, but not everything. An empty
            list says that nothing is to be masked, and is accepted.
        masked: the names of the parameters that are masked.
        head: the head's name, for messages.

    Raises:
        InputError: a weight that is selected cannot be masked; a pattern or type fits no weight; or nothing is masked.
    """
    parts = None if selection is is_weight else parts_of(selection)
    unmaskable = list(_unfit(backbone, masked))
    if selection is is_weight or parts is not None:
        unmaskable += _no_parameters(backbone, parts)
    if unmaskable:
        shown = "; ".join(f"{name} {why}" for name, why, _ in unmaskable[:3]) + ("; …" if len(unmaskable) > 3 else "")
        raise InputError(
            f"{len(unmaskable)} of the selected weights cannot be masked ({shown}): {unmaskable[0][2]}; or leave it out (select)"
        )
    for part in parts or ():
        if not any(_fits(part, name, _owner(backbone, name)) for name in masked):
            raise InputError(_fits_nothing(part, backbone, masked, head))
    if not masked and parts != []:
        kind = type(backbone).__name__
        count = sum(1 for _ in backbone.parameters())
        if selection is is_weight:
            what = f"by default the weights of {_LAYERS} are, and this {kind} has none of its own"
        else:
            what = f"select={selection!r} picks none of the {count} parameters of this {kind}"
        raise InputError(f"there is nothing to mask: {what}; pass a `select` that picks some")


def _owner(backbone: nn.Module, name: str) -> nn.Module:
    return backbone.get_submodule(name.rpartition(".")[0])


def _fits(part: str | type[nn.Module], name: str, module: nn.Module) -> bool:
    return fnmatch.fnmatchcase(name, part) if isinstance(part, str) else isinstance(module, part)


def _fits_nothing(part: str | type[nn.Module], backbone: nn.Module, masked: Sequence[str], head: str | None) -> str:
    """Why a pattern or a type fits none of the weights that are masked, and what would."""
    shown = repr(part) if isinstance(part, str) else part.__name__
    every = dict(backbone.named_parameters(remove_duplicate=False))
    found = [name for name in every if _fits(part, name, _owner(backbone, name))]
    tied = [(name, first) for name in found for first in masked if every[name] is every[first]]
    weights = [name for name in every if is_weight(name, _owner(backbone, name), every[name])]
    some = ", ".join(weights[:1] + weights[-2:]) if len(weights) > 3 else ", ".join(weights)
    if tied:
        why, remedy = f"{tied[0][0]} is the same tensor as {tied[0][1]}", f"select that name ({tied[0][1]!r})"
    elif found:
        why = f"{found[0]} is no weight of {_LAYERS}, among which patterns and types choose"
        remedy = "select by a function (name, module, parameter) -> bool"
    elif head is not None and isinstance(part, str) and fnmatch.fnmatchcase(head + ".weight", part):
        why, remedy = f"{head!r} is the head, which is each task's own", f"leave it out, or name weights such as {some}"
    else:
        why, remedy = "none has such a name" if isinstance(part, str) else "there is no such layer", f"name some, such as {some}"
    return f"select: {shown} fits no weight that could be masked ({why}): {remedy}"


def _unfit(backbone: nn.Module, masked: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Selected parameters of a kind that no mask acts on: name, why, remedy."""
    for name in masked:
        parameter = backbone.get_parameter(name)
        if parameter.dtype not in _DTYPES:
            yield name, f"is of {parameter.dtype}", "convert it to float32"
        elif parameter.ndim == 0:
            yield name, "is a single number", "leave it out of select"
        elif type(parameter.data) is not Tensor:
            yield name, f"is a {type(parameter.data).__name__}", "give the network before it was quantised or distributed"


def _no_parameters(backbone: nn.Module, parts: Sequence[str | type[nn.Module]] | None) -> Iterator[tuple[str, str, str]]:
    """Weights of layers that would be selected if they were parameters: name, why, remedy."""
    for module_name, module in backbone.named_modules():
        for leaf in WEIGHTS:
            name = f"{module_name}.{leaf}" if module_name else leaf
            found = _no_parameter(module, leaf)
            if found is not None and (parts is None or any(_fits(part, name, module) for part in parts)):
                yield name, *found


def _no_parameter(module: nn.Module, leaf: str) -> tuple[str, str] | None:
    """Why the weight `leaf` of a layer is none of its parameters, and the remedy; None if it is, or it has no such weight."""
    if any(kind.__module__.startswith("torch.ao.nn") and "quantized" in kind.__module__ for kind in type(module).__mro__):
        quantised = callable(getattr(module, leaf, None))
        return ("is quantised", "give the network before it was quantised") if quantised else None
    if not isinstance(module, MASKABLE) or module._parameters.get(leaf) is not None:
        return None
    if is_parametrized(module, leaf):
        kinds = [type(kind).__name__.lstrip("_") for kind in module.parametrizations[leaf]]  # type: ignore[index]
        remedy = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {leaf!r}) makes it a parameter again"
        return f"is parametrised by {', '.join(kinds)}", remedy
    if isinstance(vars(module).get(leaf), Tensor):
        return _computed(module, leaf) or ("is an attribute and no parameter", "make it an nn.Parameter")
    if module._buffers.get(leaf) is not None:
        return "is a buffer and no parameter", "make it an nn.Parameter"
    return None


def _computed(module: nn.Module, leaf: str) -> tuple[str, str] | None:
    """What computes an attribute of `module` before each call, one of PyTorch's old-style functions, and the remedy."""
    for hook in module._forward_pre_hooks.values():
        for kind, (name, remove) in _OLD_STYLE.items():
            if isinstance(hook, kind) and (getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)) == leaf:
                return f"is computed before each call ({name})", f"{remove}(layer, {leaf!r}) makes it a parameter again"
    return None
