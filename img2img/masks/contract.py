"""What a mask method has to keep, checked when a task is added, before its training, and when it is frozen."""

from collections.abc import Mapping

import torch
from torch import Tensor

from img2img.errors import InputError
from img2img.masks.base import METHODS, Mask, MaskMethod
from img2img.masks.basis import Basis
from img2img.masks.layers import Layer


def check_method(method: object) -> None:
    """Check that what a task is added with is an object of a registered mask method.

    Raises:
        InputError: it is the class, a name, or something else; or the class has no name of its own.
    """
    if isinstance(method, MaskMethod):
        METHODS.check_registered(type(method))  # now, rather than when what was trained is saved
        return
    if isinstance(method, type) and issubclass(method, MaskMethod):
        got, remedy = f"the class {method.__name__}", f"write {method.__name__}(), with its options in the brackets"
    else:
        got, remedy = repr(method), "img2img.masks.build_method(name, options) makes one of a name"
    raise InputError(f"add_task got {got} as method: expected an object, such as masks.Piggyback(); {remedy}")


def check_created(method: MaskMethod, masks: Mapping[str, Mask], layers: Mapping[str, Layer]) -> None:
    """Check that the masks that a method has made are those of weights of the network.

    Raises:
        InputError: one has a name of no weight.
    """
    if wrong := [name for name in masks if name not in layers]:
        raise InputError(
            f"create() of the mask method {method.name!r} made masks for {', '.join(map(repr, wrong[:3]))}, which are no masked "
            f"weights: expected names among {', '.join(map(repr, list(layers)[:3]))}, ...; use the keys of `layers`"
        )


@torch.no_grad()
def check_frozen(name: str, mask: Mask, frozen: Mask, weight: Tensor) -> None:
    """Check that a frozen mask has the effective weight of the mask in training that it was made of, where that is promised.

    Raises:
        InputError: it has another one.
    """
    if frozen.exact:
        sort = type(mask).__name__
        _compare(
            mask(weight), frozen(weight), f"{sort} of {name}, once frozen,", "effective() gave in training",
            f"let decode() and write() give what effective() gives, or set exact = False in {sort} where values are rounded",
        )  # fmt: skip


@torch.no_grad()
def check_restored(
    method: MaskMethod,
    masks: Mapping[str, Mask],
    weights: Mapping[str, Tensor],
    layers: Mapping[str, Layer],
    bases: Mapping[str, Basis],
) -> None:
    """Check that the masks which a method restores from what frozen ones store have the same effective weights.

    Raises:
        InputError: a mask is missing, or has another effective weight.
    """
    restored = method.restore({name: mask.stored() for name, mask in masks.items()}, layers, bases)
    if restored.keys() != masks.keys():
        odd = sorted(restored.keys() ^ masks.keys())
        raise InputError(
            f"restore() of the mask method {method.name!r} and create() differ in the masks of {', '.join(odd[:3])}: expected "
            "masks of the same weights; correct one of them"
        )
    for name, mask in masks.items():
        _compare(
            mask(weights[name]), restored[name](weights[name]), f"{type(mask).__name__} of {name}, restored from what it stores,",
            "it had before", f"correct stored() of the mask or restore() of the method {method.name!r}",
        )  # fmt: skip


def check_gradients(masks: Mapping[str, Mask], weights: Mapping[str, Tensor]) -> None:
    """Check that what masks in training are to learn can be learned.

    Raises:
        InputError: the effective weight of a mask with trained parameters depends on none of them.
    """
    for name, mask in masks.items():
        trained = [parameter for parameter, value in mask.named_parameters() if value.requires_grad]
        with torch.enable_grad():
            learns = not trained or mask(weights[name]).requires_grad
        if not learns:
            raise InputError(
                f"effective() of {type(mask).__name__}, the mask of {name}, has no gradient by {', '.join(trained)}: expected "
                "one, or it stays as it begins; leave out detach(), or use a straight-through estimate, "
                "hard + (soft - soft.detach())"
            )


def _compare(before: Tensor, after: Tensor, what: str, reference: str, remedy: str) -> None:
    if torch.equal(before, after):
        return
    if before.shape != after.shape or before.dtype != after.dtype:
        found = f"is {tuple(after.shape)} {after.dtype}, not {tuple(before.shape)} {before.dtype},"
    else:
        same = (before == after) | (before.isnan() & after.isnan())
        if same.all():
            return
        change = (before.double() - after.double()).abs().max().item()
        found = f"changes {int((~same).sum())} of {same.numel()} values, by {change:.3g} at most, from what"
        raise InputError(f"{what} {found} {reference}: expected the same bits; {remedy}")
    raise InputError(f"{what} {found} which {reference}: expected the same; {remedy}")
