"""What all masks of real values share: what a frozen one is, its file, and what it can start from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mask_zoo import WithHead, evaluate, head, train
from torch import Tensor

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.analysis import density_table, value_table
from img2img.masks.real_valued import RealValuedMask
from img2img.masks.storage import storage_table
from img2img.training.mask_report import describe_masks

METHODS: dict[str, masks.MaskMethod] = {
    "lora": masks.LoRA(rank=2),
    "dora": masks.DoRA(rank=2),
    "lokr": masks.LoKr(rank=1),
    "ia3": masks.IA3(),
    "dan": masks.DAN(),
    "residual_adapter": masks.ResidualAdapter(),
}
NUMBERS = {
    "lora": 2 * (8 + 27) + 2 * (8 + 72),
    "dora": 2 * (8 + 27) + 2 * (8 + 72) + 8 + 8,
    "lokr": (2 * 1 + 4 * 1 + 1 * 27) + (2 * 2 + 4 * 1 + 1 * 36),
    "ia3": 8 + 8,
    "dan": 64 + 64,
    "residual_adapter": 8 * 3 + 8 * 8,
}
"""Of the two convolutions 3 -> 8 and 8 -> 8 of 3 x 3: rank (outputs + inputs x taps), and so on."""


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8)


@pytest.fixture
def net() -> MaskedNetwork:
    return MaskedNetwork(WithHead(), head="head")


def values_of(net: MaskedNetwork, task: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in net.state(task).masks.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_a_file_has_two_bytes_a_number(name: str, net: MaskedNetwork, x: Tensor, tmp_path: Path) -> None:
    net.add_task("task", METHODS[name], head=head())
    train(net, "task", x)
    assert sum(p.numel() for p in net.state("task").masks.parameters()) == NUMBERS[name]
    net.freeze_task("task")
    rows = [row for row in storage_table(net.save_task("task", tmp_path / "task")) if row["weight"].startswith("body")]
    assert sum(row["bytes"] for row in rows if row["part"] is not None) == 2 * NUMBERS[name]
    assert {row["coder"] for row in rows} == {"raw"}


@pytest.mark.parametrize("name", METHODS)
def test_freezing_rounds_each_value_once(name: str, net: MaskedNetwork, x: Tensor) -> None:
    net.add_task("task", METHODS[name], head=head())
    train(net, "task", x)
    first = next(net.state("task").masks.parameters())
    first.data.view(-1)[:2] = torch.tensor([1e6, -1e6])
    before = values_of(net, "task")
    net.freeze_task("task")
    for part, value in values_of(net, "task").items():
        assert value.dtype == torch.float16
        rounded = before[part].clamp(-65504, 65504).numpy().astype("float16")
        assert torch.equal(value, torch.from_numpy(rounded)), "beyond the range: its end, not infinity"
    net.continue_task("task")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in net.state("task").masks.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_there_is_no_density_and_each_layer_has_numbers_of_its_own(name: str, net: MaskedNetwork, x: Tensor) -> None:
    net.add_task("task", METHODS[name], head=head())
    train(net, "task", x)
    assert net.state("task").density() is None
    assert [row.density for row in density_table(net)] == [None, None]
    found = value_table(net, "task")
    assert {row.layer for row in found} == {"body.0.weight", "body.3.weight"}
    assert all(row.mean is not None and row.mean > 0 for row in found)
    described = describe_masks(net)["tasks"]["task"]
    assert described["density"] is None
    assert described["values"].keys() == {row.name for row in found}


def test_a_task_starts_from_the_same_method_with_the_same_options_alone(net: MaskedNetwork, x: Tensor) -> None:
    net.add_task("lora", masks.LoRA(rank=2, alpha=2.0), head=head())
    train(net, "lora", x)
    net.freeze_task("lora")
    net.add_task("warm", masks.LoRA(rank=2, alpha=2.0), head=head(), start_from="lora")
    theirs = values_of(net, "lora")
    for part, value in values_of(net, "warm").items():
        assert torch.equal(value, theirs[part].float())
    before = evaluate(net, "lora", x)
    train(net, "warm", x)
    assert torch.equal(evaluate(net, "lora", x), before)
    others = {
        "rank": masks.LoRA(rank=3, alpha=3.0),
        "scale": masks.LoRA(rank=2, alpha=4.0),
        "dora": masks.DoRA(rank=2, alpha=2.0),
    }
    for name, method in others.items():
        with pytest.raises(InputError, match=r"LoRAMask.*same method with the same options.*start_from=None"):
            net.add_task(name, method, head=head(), start_from="lora")
    with pytest.raises(InputError, match="LoRAMask has no binary mask to start from"):
        net.add_task("binary", masks.Piggyback(), head=head(), start_from="lora")
    assert net.tasks() == ("lora", "warm")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda values: values.float(), "float32"),
        (lambda values: values[..., :-1], r"expected torch.float16"),
        (lambda values: torch.full_like(values, torch.inf), "no finite numbers"),
        (lambda values: torch.full_like(values, torch.nan), "no finite numbers"),
        (None, "expected the parts"),
    ],
)
def test_damaged_values_are_refused(name: str, damage: Callable[[Tensor], Tensor] | None, says: str, net: MaskedNetwork) -> None:
    method = METHODS[name]
    fresh = method.create(net.layers(), {})
    stored = {weight: dict(mask.stored()) for weight, mask in fresh.items()}
    assert all(isinstance(mask, RealValuedMask) and mask.frozen for mask in method.restore(stored, net.layers(), {}).values())
    part = next(iter(stored["body.3.weight"]))
    if damage is None:
        del stored["body.3.weight"][part]
    else:
        stored["body.3.weight"][part] = damage(stored["body.3.weight"][part])
    with pytest.raises(InputError, match=says) as error:
        method.restore(stored, net.layers(), {})
    assert "body.3.weight" in str(error.value)


def test_a_restored_mask_does_not_share_its_values_with_what_it_was_read_from(net: MaskedNetwork) -> None:
    stored = {name: mask.stored() for name, mask in masks.IA3().create(net.layers(), {}).items()}
    found = masks.IA3().restore(stored, net.layers(), {})
    stored["body.0.weight"]["g"].fill_(7)
    assert found["body.0.weight"].stored()["g"].max() == 1
