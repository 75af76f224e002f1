"""What a mask method of one's own gets wrong is named: when a task is added, before it is trained, and when it is frozen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mask_zoo import WithHead, head, train
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.api import run
from img2img.masks import METHODS, Basis, Layer, Mask, MaskMethod

pytestmark = pytest.mark.usefixtures("registries")
Made = dict[str, Mask]
Layers = Mapping[str, Layer]
Stored = Mapping[str, Mapping[str, Tensor]]


class Levels(Mask):
    """Each weight times 0, 0.5, 1 or 1.5, by a rounded score."""

    def __init__(self, score: Tensor | None, codes: Tensor | None) -> None:
        super().__init__()
        self.score = None if score is None else nn.Parameter(score)
        self.register_buffer("codes", codes)
        self.frozen = score is None

    def level(self) -> Tensor:
        assert self.score is not None
        return (self.score.detach() * 100).round().clamp(0, 3)

    def effective(self, weight: Tensor) -> Tensor:
        assert self.score is not None
        return weight * (self.level() / 2 + 100 * (self.score - self.score.detach())).to(weight.dtype)

    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(weight, requires_grad=False).copy_(self.codes).div_(2),)

    def write(self, weight: Tensor, decoded: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return torch.mul(weight, decoded[0], out=out)

    def freeze(self) -> None:
        if self.score is not None:
            self.codes, self.score, self.frozen = self.level().to(torch.uint8), None, True

    def stored(self) -> dict[str, Tensor]:
        return {"codes": self.codes}

    def binary(self) -> None:
        return None

    def start_from(self, other: Mask) -> None:
        raise InputError("no start")


class Forgetful(Levels):
    def decode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(weight, requires_grad=False).copy_(self.codes),)


class Rounded(Forgetful):
    exact = False


class Deaf(Levels):
    def effective(self, weight: Tensor) -> Tensor:
        return super().effective(weight).detach()


@METHODS.register("levels")
@dataclass(frozen=True, kw_only=True)
class Method(MaskMethod):
    wrong: str = ""

    def create(self, layers: Layers, bases: Mapping[str, Basis]) -> Made:
        sort = {"decode": Forgetful, "rounded": Rounded, "effective": Deaf}.get(self.wrong, Levels)
        more = "x" if self.wrong == "create" else ""
        return {name + more: sort(layer.empty_scores().fill_(0.02), None) for name, layer in layers.items()}

    def restore(self, stored: Stored, layers: Layers, bases: Mapping[str, Basis]) -> Made:
        found = {name: parts["codes"] for name, parts in stored.items()}
        if self.wrong == "restore":
            found = {name: torch.ones_like(codes) for name, codes in found.items()}
        if self.wrong == "lost":
            found = dict(list(found.items())[1:])
        return {name: Levels(None, codes) for name, codes in found.items()}


@pytest.fixture(autouse=True)
def _registered() -> None:
    METHODS.register("levels")(Method)


@pytest.fixture
def net() -> MaskedNetwork:
    return MaskedNetwork(WithHead(), head="head")


MESSAGES = {
    "decode": r"Forgetful of .*, once frozen, changes \d+ of \d+ values, by .* from what effective\(\) gave.*exact = False",
    "restore": r"Levels of .*, restored from what it stores, changes .*restore\(\) of the method 'levels'",
    "lost": r"restore\(\) of the mask method 'levels' and create\(\) differ in the masks of",
    "effective": r"effective\(\) of Deaf, the mask of .*, has no gradient by score: expected one.*straight-through",
    "create": r"create\(\) of the mask method 'levels' made masks for '.*x', .*no masked weights: expected names among",
}


def test_freezing_refuses_a_mask_that_breaks_its_promise_and_leaves_the_task_in_training(net: MaskedNetwork) -> None:
    x = torch.randn(6, 3, 8, 8)
    state = net.add_task("a", Method(wrong="decode"), head=head(2))
    train(net, "a", x)
    with pytest.raises(InputError, match=MESSAGES["decode"]):
        net.freeze_task("a")
    assert not state.frozen
    assert all(not mask.frozen for _, mask in state.named_masks())
    for wrong in ("", "rounded"):
        net.add_task(f"b{wrong}", Method(wrong=wrong), head=head(2))
        net.freeze_task(f"b{wrong}")


@pytest.mark.parametrize("wrong", MESSAGES)
def test_a_run_refuses_it_before_any_training(config: Callable[..., dict[str, Any]], tmp_path: Path, wrong: str) -> None:
    with pytest.raises(InputError, match=MESSAGES[wrong]):
        run(config(method={"name": "levels", "wrong": wrong}))
    assert not (tmp_path / "run" / "metrics").exists()


def test_a_run_of_one_that_keeps_the_contract(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    copies = {"trainable_copies": 0.05}
    assert len(run(config(sequence=["disks", "colour"], method={"name": "levels"}, masks=copies))["tasks"]) == 2
    assert "colour: is learned (levels, some weights trained)" in (tmp_path / "run" / "log.txt").read_text()


def test_what_is_no_object_of_a_method_is_refused(net: MaskedNetwork) -> None:
    with pytest.raises(InputError, match=r"got the class Piggyback as method: expected .* such as masks.Piggyback\(\); write"):
        net.add_task("a", masks.Piggyback, head=head(2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 'piggyback' as method: expected an object"):
        net.add_task("a", "piggyback", head=head(2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=MESSAGES["create"]):
        net.add_task("a", Method(wrong="create"), head=head(2))
    assert net.tasks() == ()
