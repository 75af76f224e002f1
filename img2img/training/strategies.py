"""The ways to learn a sequence by name: masks, and the comparison methods, whose modules are imported when asked for."""

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from img2img.errors import InputError
from img2img.masks import METHODS
from img2img.registry import Registry
from img2img.validation import Spec

MASKS = "masks"
"""The strategy of every mask method."""


class AnyStrategy(ABC):
    """What a config needs to know of a strategy. Derive from `training.strategy.Strategy`, which has the methods too.

    Attributes:
        name: its name in configs, set when the class is registered.
        learns_first: the first task is learned like any other, from random weights; the backbone is not used.
        learns_together: what is learned of a task depends on all tasks of the sequence, in place of those before it.
        cannot_forget: what a task runs with is its own or frozen, so that no later task changes what it gives.
    """

    name: ClassVar[str]
    learns_first: ClassVar[bool] = False
    learns_together: ClassVar[bool] = False
    cannot_forget: ClassVar[bool] = False


_RESEARCH = "img2img.research.strategies"
STRATEGIES: Registry[type[AnyStrategy]] = Registry(
    "comparison method",
    AnyStrategy,
    attribute="name",
    own={
        MASKS: "img2img.training.mask_strategy",
        "cpg": f"{_RESEARCH}.cpg",
        "decoder_only": f"{_RESEARCH}.separate",
        "ewc": f"{_RESEARCH}.ewc",
        "finetune": f"{_RESEARCH}.separate",
        "head_only": f"{_RESEARCH}.separate",
        "joint": f"{_RESEARCH}.joint",
        "lwf": f"{_RESEARCH}.lwf",
        "packnet": f"{_RESEARCH}.packnet",
        "scratch": f"{_RESEARCH}.separate",
        "sequential": f"{_RESEARCH}.shared",
    },
)
"""The strategies by name. `method.name` of a config is one of them but "masks", or a mask method."""


def comparison_methods() -> list[str]:
    """The names of the comparison methods."""
    return [name for name in STRATEGIES if name != MASKS]


def strategy_of(method: Mapping[str, Any]) -> tuple[Spec[Any], Spec[Any]]:
    """A config's `method`, checked, and the strategy that learns by it: the comparison method itself, or masks.

    Raises:
        InputError: the name or an option is unknown, or a value is of another type.
    """
    name = method.get("name")
    if name in comparison_methods():
        if name in METHODS:
            raise InputError(
                f"{name!r} is a comparison method and a mask method here: expected one of them; give yours another name"
            )
        spec: Spec[Any] = Spec.of(STRATEGIES, method, what="method", key="name")
        spec.build()  # what its class refuses is refused here
        return spec, spec
    masks: Spec[Any] = Spec.of(STRATEGIES, {"name": MASKS}, what="method", key="name")
    return Spec.of(METHODS, method, what="mask method", key="name"), masks
