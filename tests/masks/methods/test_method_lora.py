"""LoRA, DoRA and LoKr against their libraries' recorded adapters, and against the papers' equations, transcribed literally."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapter_references import backbone, read
from mask_zoo import layer
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.layers import Layer, describe_layers, is_normalisation
from img2img.masks.methods.lora import factorise
from img2img.masks.real_valued import RealValuedMask

LAYERS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(3, 4, 3),
    "grouped conv": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise conv": nn.Conv2d(6, 6, 3, groups=6),
    "conv1d": nn.Conv1d(3, 4, 2),
    "transposed conv": nn.ConvTranspose2d(3, 5, 3),
    "grouped transposed conv": nn.ConvTranspose2d(4, 6, 3, groups=2),
    "linear": nn.Linear(5, 4),
    "bilinear": nn.Bilinear(3, 2, 4),
    "embedding": nn.Embedding(7, 4),
}


def described(module: nn.Module) -> Layer:
    return describe_layers(nn.Sequential(module), ["0.weight"], is_normalisation)["0.weight"]


def made(found: Layer, method: masks.MaskMethod, **values: Tensor) -> RealValuedMask:
    mask = method.create({"w": found}, {})["w"]
    assert isinstance(mask, RealValuedMask)
    for name, value in values.items():
        mask.get_parameter(name).data.copy_(value)
    return mask


def shaken(found: Layer, method: masks.MaskMethod) -> RealValuedMask:
    """A mask whose values have moved."""
    mask = made(found, method)
    for parameter in mask.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return mask


def as_rows(kind: str, weight: Tensor) -> list[Tensor]:
    """The weights of each output channel, in the order of outputs, each flattened input by input: literally."""
    module = LAYERS[kind]
    if kind == "embedding":
        return list(weight.T)
    if not isinstance(module, nn.ConvTranspose2d):
        return [row.flatten() for row in weight]
    inputs, outputs = module.in_channels // module.groups, module.out_channels // module.groups
    return [
        weight[group * inputs : (group + 1) * inputs, output].flatten()
        for group in range(module.groups)
        for output in range(outputs)
    ]


def from_rows(kind: str, like: Tensor, rows: list[Tensor]) -> Tensor:
    """The inverse of `as_rows`: a weight is linear in its rows, found one element after another."""
    flat = torch.cat(rows)
    places = torch.cat(as_rows(kind, torch.arange(like.numel()).view(like.shape)))
    return torch.zeros(like.numel(), dtype=flat.dtype).index_put((places,), flat).view(like.shape)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_matrix_of_a_weight_has_a_row_for_each_output_channel(kind: str) -> None:
    found = described(LAYERS[kind])
    rows = as_rows(kind, found.weight)
    assert torch.equal(found.as_matrix(found.weight), torch.stack(rows))
    assert torch.equal(found.from_matrix(torch.stack(rows)), found.weight)
    assert (found.out_channels, found.inputs * found.taps) == (len(rows), len(rows[0]))
    assert torch.allclose(found.channel_sums(found.weight), torch.stack(rows).sum(1), atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_loras_weight_and_gradients_are_the_papers(kind: str) -> None:
    found = described(LAYERS[kind])
    mask = shaken(found, masks.LoRA(rank=2, alpha=3.0))
    A, B = (mask.get_parameter(n).detach().clone().requires_grad_() for n in "AB")
    delta = torch.stack([sum((3 / 2) * B[o, r] * A[r] for r in range(A.shape[0])) for o in range(B.shape[0])])  # type: ignore[misc]
    expected = found.weight + from_rows(kind, found.weight, list(delta))
    upstream = torch.randn(found.weight.shape)
    effective = mask(found.weight)
    effective.backward(upstream)
    expected.backward(upstream)
    assert torch.allclose(effective, expected, atol=1e-6)
    assert torch.allclose(mask.get_parameter("A").grad, A.grad, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(mask.get_parameter("B").grad, B.grad, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", LAYERS)
def test_doras_weight_is_the_papers_and_no_gradient_goes_through_its_norm(kind: str) -> None:
    found = described(LAYERS[kind])
    mask = shaken(found, masks.DoRA(rank=2, alpha=2.0))
    A, B, m = (mask.get_parameter(n).detach().clone().requires_grad_() for n in "ABm")
    rows = torch.stack(as_rows(kind, found.weight)) + B @ A
    scaled = [m[o] * row / row.detach().norm() for o, row in enumerate(rows)]
    expected = from_rows(kind, found.weight, scaled)
    upstream = torch.randn(found.weight.shape)
    effective = mask(found.weight)
    effective.backward(upstream)
    expected.backward(upstream)
    assert torch.allclose(effective, expected, atol=1e-6)
    for name, literal in zip("ABm", (A, B, m), strict=True):
        assert torch.allclose(mask.get_parameter(name).grad, literal.grad, atol=1e-5), name  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [1, 9])
@pytest.mark.parametrize("kind", LAYERS)
def test_lokrs_weight_is_a_kronecker_product_of_outputs_and_inputs(kind: str, rank: int) -> None:
    found = described(LAYERS[kind])
    mask = shaken(found, masks.LoKr(rank=rank, alpha=2.0))
    values = {name: value.detach() for name, value in mask.named_parameters()}
    whole = "w2" in values
    assert whole or rank == 1
    w1, w2 = values["w1"], values["w2"] if whole else 2.0 * values["w2_a"] @ values["w2_b"]
    w2 = w2.view(len(w2), -1, found.taps)
    o2, i2 = w2.shape[:2]
    rows = [
        torch.stack([w1[o // o2, i // i2] * w2[o % o2, i % i2] for i in range(found.inputs)]) for o in range(found.out_channels)
    ]
    expected = found.weight + from_rows(kind, found.weight, [row.flatten() for row in rows])
    assert torch.allclose(mask(found.weight), expected, atol=1e-6)


def test_numbers_are_split_as_lycoris_splits_them() -> None:
    """Its loop, literally, for all numbers and factors up to 100; and values that the library gave."""

    def literal(dimension: int, factor: int) -> tuple[int, int]:
        if factor > 0 and dimension % factor == 0:
            return tuple(sorted((factor, dimension // factor)))  # type: ignore[return-value]
        factor = dimension if factor < 0 else factor
        m, n = 1, dimension
        length = m + n
        while m < n:
            new_m = m + 1
            while dimension % new_m != 0:
                new_m += 1
            new_n = dimension // new_m
            if new_m + new_n > length or new_m > factor:
                break
            m, n = new_m, new_n
        return (m, n) if m <= n else (n, m)

    for number in range(1, 101):
        for factor in (-1, *range(1, 101)):
            assert factorise(number, factor) == literal(number, factor), (number, factor)
    assert [factorise(n, f) for n, f in ((127, -1), (512, 4), (250, 4), (360, 16))] == [(1, 127), (4, 128), (2, 125), (15, 24)]


# ---------------------------------------------------------------------- recorded adapters


def adapted(method: masks.MaskMethod, values: dict[str, dict[str, Tensor]]) -> tuple[MaskedNetwork, Tensor]:
    """The recorded backbone with a task of those values by weight, and the recorded input."""
    module, x, _ = backbone()
    net = MaskedNetwork(module, select=lambda name, module, parameter: name in values)
    net.add_task("task", method)
    with torch.no_grad():
        for name, mask in net.state("task").named_masks():
            assert {n for n, _ in mask.named_parameters()} == set(values[name])
            for part, parameter in mask.named_parameters():
                parameter.copy_(values[name][part].reshape(parameter.shape))
    return net.eval(), x


def check(reference: str, net: MaskedNetwork, x: Tensor) -> None:
    """Every tensor of the library's merged network, and its output."""
    check_merged(reference, net)
    check_output(reference, net, x)


def check_merged(reference: str, net: MaskedNetwork) -> None:
    expected = read(f"{reference}/expected.safetensors")
    del expected["output"]
    plain = dict(net.merge("task").named_parameters())
    assert set(expected) == set(net.masked_weights())
    for name, tensor in expected.items():
        assert torch.allclose(plain[name], tensor, atol=1e-6), name


@torch.no_grad()
def check_output(reference: str, net: MaskedNetwork, x: Tensor) -> None:
    output = read(f"{reference}/expected.safetensors")["output"]
    assert torch.allclose(net(x, task="task"), output, atol=1e-5)
    assert not torch.allclose(backbone()[2], output, atol=1e-2)


def peft(reference: str, names: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    """A PEFT file's values by weight, with the names that `names` gives them."""
    values: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read(f"{reference}/adapter_model.safetensors").items():
        module, part = key.removeprefix("base_model.model.").split(".", 1)
        values.setdefault(f"{module}.weight", {})[names[part.removesuffix(".weight")]] = tensor
    return values


def lycoris(reference: str, names: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    """A LyCORIS file's values by weight, likewise."""
    values: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read(f"{reference}/lycoris.safetensors").items():
        module, part = key.removeprefix("lycoris_").split(".", 1)
        if part.removesuffix(".weight") in names:
            values.setdefault(f"{module}.weight", {})[names[part.removesuffix(".weight")]] = tensor
    return values


PEFT_NAMES = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "m",
}
LOKR_NAMES = {"lokr_w1": "w1", "lokr_w2": "w2", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b"}


def test_peft_lora_and_dora() -> None:
    for reference, kind in (("peft_lora", masks.LoRA), ("peft_dora", masks.DoRA)):
        values = peft(reference, PEFT_NAMES)
        assert values.keys() == {"conv.weight", "linear.weight", "embedding.weight"}
        check(reference, *adapted(kind(rank=2, alpha=3.0), values))


def test_lycoris_lora_and_dora_with_a_grouped_convolution() -> None:
    names = {"lora_down": "A", "lora_up": "B", "dora_scale": "m"}
    for reference, kind in (("lycoris_lora", masks.LoRA), ("lycoris_dora", masks.DoRA)):
        values = lycoris(reference, names)
        assert values.keys() == {"conv.weight", "grouped.weight", "linear.weight"}
        check(reference, *adapted(kind(rank=2, alpha=3.0), values))


def test_peft_lokr_with_a_grouped_convolution() -> None:
    values = peft("peft_lokr", LOKR_NAMES)
    assert "w2" in values["grouped.weight"]
    values["grouped.weight"]["w1"] *= 3.0  # PEFT scales by alpha / rank where w2 is whole, LyCORIS by 1
    check("peft_lokr", *adapted(masks.LoKr(rank=1, alpha=3.0), values))


def test_lycoris_lokr_with_a_grouped_convolution() -> None:
    values = lycoris("lycoris_lokr", LOKR_NAMES)
    assert "w2" in values["grouped.weight"]
    check_output("lycoris_lokr", *adapted(masks.LoKr(rank=1, alpha=3.0), values))
    for parts in values.values():
        if "w2" not in parts:
            parts["w1"] *= 3.0  # LyCORIS 4.1.3 merges with alpha / rank twice, though its layers run with it once
    check_merged("lycoris_lokr", adapted(masks.LoKr(rank=1, alpha=3.0), values)[0])


# ---------------------------------------------------------------------- start, bounds, precision


@pytest.mark.parametrize("method", [masks.LoRA(), masks.DoRA(), masks.LoKr(), masks.LoKr(rank=1)], ids=repr)
@pytest.mark.parametrize("kind", LAYERS)
def test_training_starts_at_the_backbone_and_every_factor_can_move(method: masks.MaskMethod, kind: str) -> None:
    found = described(LAYERS[kind])
    mask = made(found, method)
    assert torch.equal(mask(found.weight), found.weight)
    optimiser = torch.optim.SGD(mask.parameters(), 0.1)
    before = {n: p.detach().clone() for n, p in mask.named_parameters()}
    for _ in range(2):  # a factor beside one of zeros moves in the second step
        optimiser.zero_grad()
        (mask(found.weight) - 1).square().sum().backward()
        optimiser.step()
    for name, parameter in mask.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_loras_start_is_pefts_and_its_rank_is_at_most_the_matrixs_smaller_side() -> None:
    found = described(nn.Conv2d(64, 5, 3))
    mask = made(found, masks.LoRA(rank=8, alpha=16.0))
    A = mask.get_parameter("A")
    assert (tuple(A.shape), tuple(mask.get_parameter("B").shape)) == ((5, 576), (5, 5))
    assert mask.scale == 2.0, "the scale is that of the option"
    assert A.abs().max() <= 1 / math.sqrt(576)
    assert A.std().item() == pytest.approx(1 / math.sqrt(3 * 576), rel=0.1)
    assert mask.get_parameter("B").count_nonzero() == 0
    assert made(described(nn.Embedding(1000, 4)), masks.LoRA()).get_parameter("A").abs().max() > 0.9, "one input a number"


def test_a_channel_of_zeros_stays_finite_in_dora() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    found = layer(weight)
    mask = made(found, masks.DoRA(rank=1))
    for _ in range(3):
        mask(found.weight).sum().backward()
        for parameter in mask.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            parameter.data -= 0.1 * parameter.grad
    assert mask(found.weight).isfinite().all()
    mask.freeze()
    assert mask(found.weight).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [masks.LoRA(rank=2), masks.DoRA(rank=2), masks.LoKr(), masks.DAN(), masks.IA3()], ids=repr)
def test_a_weight_in_half_precision_is_changed_in_float32_and_rounded_once(dtype: torch.dtype, method: masks.MaskMethod) -> None:
    module = nn.Conv2d(6, 8, 3).to(dtype)
    found = described(module)
    mask = shaken(found, method)
    wide = mask(found.weight.float())
    with torch.autocast("cpu", torch.bfloat16):
        effective = mask(found.weight)
    assert effective.dtype == dtype
    assert torch.equal(effective, wide.to(dtype))
    mask.freeze()
    assert all(p.dtype == torch.float16 for p in mask.parameters())
    assert torch.equal(mask(found.weight), mask(found.weight.float()).to(dtype))


def test_a_bias_that_is_selected_is_a_matrix_of_one_column() -> None:
    x = torch.randn(2, 4, 6, 6)
    adapters = [masks.ResidualAdapter(), masks.ResidualAdapter(form="series")]
    every = [masks.LoRA(), masks.DoRA(), masks.LoKr(), masks.IA3(), masks.DAN(), *adapters]
    for method in every:
        backbone = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2))
        net = MaskedNetwork(backbone, select=lambda name, module, parameter: True)
        net.add_task("task", method)
        found = dict(net.state("task").named_masks())
        assert found.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
        bias = net.masked_weights()["2.bias"]
        with torch.no_grad():
            for parameter in found["2.bias"].parameters():
                parameter += 0.5
        assert not torch.allclose(found["2.bias"](bias), bias, atol=1e-3)
        net.freeze_task("task")
        changed = found["2.bias"](bias) - bias
        plain = net.merge("task")
        assert torch.allclose(plain(x), backbone(x) + changed.view(1, -1, 1, 1), atol=1e-3)  # the rest is rounded


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("lora", {"rank": 0}, "rank=0.*at least 1"),
        ("dora", {"alpha": 0}, "alpha=0.*above 0"),
        ("lora", {"alpha": float("inf")}, "alpha=inf"),
        ("lokr", {"factor": 0}, "factor=0.*-1"),
        ("lora", {"dropout": 0.1}, "dropout"),
        ("residual_adapter", {"form": "serial"}, "serial.*parallel"),
    ],
)
def test_options_that_cannot_be_are_refused(kind: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        masks.build_method(kind, options)


def test_pefts_lora_of_a_grouped_convolution_mixes_the_groups() -> None:
    """Why it is no map of the weight, and is not among the recorded ones above: an input reaches outputs of other groups."""
    factors = {key.split(".")[-2]: value for key, value in read("peft_lora_grouped/adapter_model.safetensors").items()}
    x = torch.zeros(1, 4, 5, 5)
    x[:, :2] = torch.rand(1, 2, 5, 5)  # the inputs of the first group alone
    y = F.conv2d(F.conv2d(x, factors["lora_A"], padding=1), factors["lora_B"], groups=2)
    assert y[:, 2:].abs().max() > 0.1
