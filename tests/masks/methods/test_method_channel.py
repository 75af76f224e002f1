"""(IA)³, deep adaptation networks and residual adapters, against recorded adapters and as layers beside and after a layer; and
what all masks of real values share: what a frozen one is, its file, and what it can start from.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from adapter_references import backbone, read
from mask_zoo import WithHead, evaluate, head, train
from test_method_lora import LAYERS, adapted, as_rows, check, described, from_rows, made, shaken
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.analysis import density_table, value_table
from img2img.masks.methods.channel import CentreMask, MixingMask
from img2img.masks.real_valued import RealValuedMask
from img2img.masks.storage import storage_table
from img2img.training.mask_report import describe_masks

ADAPTERS = {"parallel": masks.ResidualAdapter(), "series": masks.ResidualAdapter(form="series"), "dan": masks.DAN()}


@pytest.mark.parametrize("kind", LAYERS)
def test_ia3_multiplies_each_output_channel(kind: str) -> None:
    found = described(LAYERS[kind])
    mask = made(found, masks.IA3())
    assert torch.equal(mask(found.weight), found.weight)
    mask.get_parameter("g").data.uniform_(0.5, 2)
    g = mask.get_parameter("g").detach()
    rows = [g[o] * row for o, row in enumerate(as_rows(kind, found.weight))]
    assert torch.equal(mask(found.weight), from_rows(kind, found.weight, rows))
    assert torch.equal(mask.values()["g"], g)


def test_lycoris_ia3() -> None:
    values = {
        key.removeprefix("lycoris_"): {"g": 1 + tensor}
        for key, tensor in read("lycoris_ia3/lycoris.safetensors").items()
        if key.endswith(".weight")
    }
    assert values.keys() == {"conv.weight", "grouped.weight", "linear.weight"}
    check("lycoris_ia3", *adapted(masks.IA3(), values))


def test_peft_ia3_scales_biases_as_a_selection_of_biases_does() -> None:
    values = {}
    biases = {name for name, _ in backbone()[0].named_parameters() if name.endswith(".bias")}
    for key, tensor in read("peft_ia3/adapter_model.safetensors").items():
        module = key.split(".")[-2]
        for name in {f"{module}.weight", f"{module}.bias"} & (biases | {f"{module}.weight"}):
            values[name] = {"g": tensor}
    assert len(values) == 5
    check("peft_ia3", *adapted(masks.IA3(), values))


# ---------------------------------------------------------------------- mixed filters


@pytest.mark.parametrize("kind", LAYERS)
def test_dan_mixes_the_output_filters_of_each_group(kind: str) -> None:
    found = described(LAYERS[kind])
    mask = shaken(found, masks.DAN())
    A = mask.get_parameter("A").detach().clone().requires_grad_()
    D = [torch.eye(A.shape[1]) + block for block in A]
    rows, size = as_rows(kind, found.weight), A.shape[1]
    mixed = [sum(D[group][o, i] * rows[group * size + i] for i in range(size)) for group in range(len(D)) for o in range(size)]
    expected = from_rows(kind, found.weight, mixed)  # type: ignore[arg-type]
    upstream = torch.randn(found.weight.shape)
    effective = mask(found.weight)
    effective.backward(upstream)
    expected.backward(upstream)
    assert torch.allclose(effective, expected, atol=1e-6)
    assert torch.allclose(mask.get_parameter("A").grad, A.grad, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["dan", "series"])
@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.Linear(5, 4, bias=False)],
    ids=repr,
)
def test_a_mixed_layer_is_the_layer_and_a_convolution_of_one_tap_after_it(module: nn.Module, form: str) -> None:
    found = described(module)
    mask = shaken(found, ADAPTERS[form])
    x = torch.randn(2, 5) if isinstance(module, nn.Linear) else torch.randn(2, 4, 7, 7)
    twin = copy.deepcopy(module)
    twin.weight = nn.Parameter(mask(found.weight).detach())  # type: ignore[assignment]
    y = module(x)
    A = mask.get_parameter("A").flatten(0, 1)
    change = F.linear(y, A) if y.ndim == 2 else F.conv2d(y, A[..., None, None], groups=found.groups)
    assert torch.allclose(twin(x), y + change, atol=1e-5)


# ---------------------------------------------------------------------- a tap beside the kernel


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d, nn.Conv1d, nn.ConvTranspose3d])
def test_a_parallel_adapter_is_a_convolution_of_one_tap_beside_the_layer(
    kind: type[nn.Conv2d], groups: int, stride: int, size: int
) -> None:
    """Of kernels of an even size too, and of transposed ones: with the usual padding the two meet at the same positions."""
    padding = (size - 1) // 2
    options = {"stride": stride, "groups": groups, "bias": False}
    module, beside = kind(4, 6, size, padding=padding, **options), kind(4, 6, 1, **options)
    found = described(module)
    mask = made(found, masks.ResidualAdapter())
    assert isinstance(mask, CentreMask)
    assert torch.equal(mask(found.weight), found.weight)
    assert mask.get_parameter("A").shape == (6, 4 // groups)
    one_tap = described(beside)
    mask.get_parameter("A").data.copy_(one_tap.as_matrix(one_tap.weight))
    dimensions = module.weight.ndim - 2
    x = torch.randn(1, 4, *[6] * dimensions)
    twin = copy.deepcopy(module)
    twin.weight = nn.Parameter(mask(found.weight).detach())
    y, expected = twin(x) - module(x), beside(x)
    # The layers may differ in how many positions they have at the end; where both have one they agree.
    both = tuple(slice(min(a, b)) for a, b in zip(y.shape, expected.shape, strict=True))
    assert torch.allclose(y[both], expected[both], atol=1e-5)
    assert y[both].abs().max() > 0.1


def test_a_dilated_kernel_and_an_oblong_one_have_their_middle_tap_too() -> None:
    module = nn.Conv2d(3, 4, (3, 5), padding=(2, 4), dilation=2, bias=False)
    mask = made(described(module), masks.ResidualAdapter())
    mask.get_parameter("A").data.normal_()
    change = mask(module.weight) - module.weight
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(
        F.conv2d(x, change, padding=(2, 4), dilation=2), F.conv2d(x, mask.get_parameter("A")[..., None, None]), atol=1e-5
    )


def test_a_layer_without_a_kernel_gets_an_adapter_of_its_weights_size() -> None:
    for kind in ("linear", "embedding", "bilinear"):
        found = described(LAYERS[kind])
        mask = shaken(found, masks.ResidualAdapter())
        assert mask.get_parameter("A").numel() == found.weight.numel()
        assert torch.allclose(found.as_matrix(mask(found.weight) - found.weight), mask.get_parameter("A"), atol=1e-6)


def test_forms_make_their_own_masks_and_every_start_is_the_backbone() -> None:
    found = described(nn.Conv2d(4, 6, 3))
    for form, kind in {"parallel": CentreMask, "series": MixingMask, "dan": MixingMask}.items():
        mask = made(found, ADAPTERS[form])
        assert type(mask) is kind
        assert torch.equal(mask(found.weight), found.weight)


def test_the_papers_biases_of_each_tasks_own_are_copies_beside_dan() -> None:
    net = MaskedNetwork(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), select=lambda name, module, parameter: True)
    state = net.add_task("task", masks.Mixed(method=masks.DAN(), trainable_copies=["*.bias"]))
    found = dict(state.named_masks())
    assert isinstance(found["0.bias"], masks.TrainableCopy)
    assert isinstance(found["0.weight"], MixingMask)


# ---------------------------------------------------------------------- masks of real values

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
    with pytest.raises(InputError, match=r"LoRAMask has no binary mask.*start_from=None"):
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
