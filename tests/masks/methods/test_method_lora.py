"""LoRA, DoRA and LoKr against their libraries' recorded adapters, and against the papers' equations, transcribed literally."""

import json
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapter_references import ARCHIVE, backbone, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_zoo import layer
from safetensors.torch import save_file
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.adapter_files import read_adapter
from img2img.masks.adapter_tasks import add_adapter, write_adapter
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
        ("lora", {"alpha": float("inf")}, "alpha: inf: expected a finite number"),
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


# ---------------------------------------------------------------------- files of the libraries, read and written


LYCORIS = ["lycoris_lora", "lycoris_dora", "lycoris_lokr", "lycoris_ia3"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def network(**changes: Any) -> tuple[MaskedNetwork, Tensor]:
    module, x, _ = backbone()
    return MaskedNetwork(module, **changes).eval(), x


@pytest.mark.parametrize("reference", ["peft_lora", "peft_dora", "peft_lokr", *LYCORIS])
@torch.no_grad()
def test_a_librarys_file_becomes_a_task_with_its_outputs(unpacked: Path, reference: str) -> None:
    net, x = network()
    file = unpacked / reference / ("" if reference.startswith("peft") else "lycoris.safetensors")
    found = read_adapter(file, net)
    assert (found.form, found.proven) == (reference.partition("_")[0], False)
    assert found.method.name == reference.partition("_")[2]
    rounding = add_adapter(net, "task", found)
    assert 0 < rounding < 2e-3
    output = read(f"{reference}/expected.safetensors")["output"]
    assert torch.allclose(net(x, task="task"), output, atol=1e-3)
    assert not torch.allclose(backbone()[2], output, atol=1e-2)
    # What the file leaves alone is the backbone's, exactly.
    merged, plain = dict(net.merge("task").named_parameters()), dict(backbone()[0].named_parameters())
    assert {name for name in plain if not torch.equal(merged[name], plain[name])} == found.values.keys()
    assert all(t.is_inference() or t.dtype == torch.float16 for t in net.state("task").masks.parameters())


@pytest.mark.parametrize("form", ["peft", "lycoris"])
@pytest.mark.parametrize(
    "method",
    [masks.LoRA(rank=5, alpha=2.0), masks.DoRA(rank=2), masks.LoKr(rank=1, alpha=3.0), masks.LoKr(rank=1, factor=2), masks.IA3()],
    ids=repr,
)
@torch.no_grad()
def test_a_task_goes_out_and_comes_back_bit_for_bit(tmp_path: Path, method: Any, form: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 8, (1, 3), bias=False), nn.Flatten())
    module.append(nn.Linear(48, 10, bias=False)).append(nn.Linear(10, 2))
    net, x = MaskedNetwork(module, head="5").eval(), torch.randn(2, 3, 8, 5)
    state = net.add_task("task", method, head=nn.Linear(10, 3))
    for tensor in (*state.masks.parameters(), *state.norm_tensors().values()):
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape)
    write_adapter(net, "task", tmp_path, form)
    found = read_adapter(tmp_path, net)
    assert found.proven
    assert {name: value for name, value in found.method.options().items() if name != "alpha"} == {
        name: value for name, value in method.options().items() if name != "alpha"
    }
    assert add_adapter(net, "again", found, head=nn.Linear(10, 3)) == 0
    for (name, mine), (other, theirs) in zip(state.named_masks(), net.state("again").named_masks(), strict=True):
        assert name == other
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert torch.allclose(net(x, task="again"), net(x, task="task"), rtol=1e-5, atol=1e-6)
    other = MaskedNetwork(nn.Sequential(*module[:5], nn.Linear(10, 2)), head="5")
    other.backbone[0].weight.mul_(2)
    moved = MaskedNetwork(other.backbone, head="5")
    with pytest.raises(InputError, match=r"belongs to the backbone .*this network's is"):
        read_adapter(tmp_path, moved)


def forged(unpacked: Path, folder: Path, reference: str, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> Path:
    """A library's file with a change of its tensors, or of PEFT's configuration."""
    name = "adapter_model.safetensors" if reference.startswith("peft") else "lycoris.safetensors"
    tensors, config = read(f"{reference}/{name}"), {}
    if reference.startswith("peft"):
        config = json.loads((unpacked / reference / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / name)
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


@pytest.mark.parametrize("reference", ["peft_lora", "lycoris_lora"])
@torch.no_grad()
def test_ranks_and_scales_of_many_layers_become_one(unpacked: Path, tmp_path: Path, reference: str) -> None:
    """A layer of a higher rank than its matrix allows, one of a lower, and a scale of its own: the same change of each weight."""
    a, b = ("lora_A", "lora_B") if reference == "peft_lora" else ("lora_down", "lora_up")
    prefix = "base_model.model." if reference == "peft_lora" else "lycoris_"
    deltas = {}

    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for module, rank, alpha, shapes in (
            ("conv", 1, 3.0, ((1, 3, 3, 3), (4, 1, 1, 1))),
            ("linear", 7, -5.0, ((7, 4), (6, 7))),
        ):
            A, B = (0.3 * torch.randn(shape) for shape in shapes)
            tensors |= {f"{prefix}{module}.{a}.weight": A, f"{prefix}{module}.{b}.weight": B}
            deltas[module] = alpha / rank * B.flatten(1) @ A.flatten(1)
            if config:
                config["rank_pattern"][module], config["alpha_pattern"][f"^{module}"] = rank, alpha
            else:
                tensors[f"{prefix}{module}.alpha"] = torch.tensor(alpha)

    net, _ = network()
    found = read_adapter(forged(unpacked, tmp_path, reference, change), net)
    assert found.method.options()["rank"] == 7
    add_adapter(net, "task", found)
    merged, plain = dict(net.merge("task").named_parameters()), dict(backbone()[0].named_parameters())
    for module, delta in deltas.items():
        got = (merged[f"{module}.weight"] - plain[f"{module}.weight"]).flatten(1)
        assert torch.allclose(got, delta, atol=2e-3), module


def _set(name: str, value: Any) -> Callable[..., object]:
    return lambda tensors, config: (tensors if isinstance(value, Tensor) else config).update({name: value})


def _without(name: str) -> Callable[..., object]:
    return lambda tensors, config: tensors.pop(name)


P, L = "base_model.model.", "lycoris_"
REFUSED: dict[str, tuple[str, Callable[..., object], str]] = {
    "PEFT's (IA)3 of a bias": ("peft_ia3", lambda t, c: None, r"ia3_l.*bias"),
    "a grouped convolution": ("peft_lora_grouped", lambda t, c: None, r"grouped\.lora_.*mixes the groups"),
    "an unknown key": ("peft_lora", _set(P + "conv.sparkle", torch.ones(1)), r"conv\.sparkle.*no such tensor"),
    "a bias": ("peft_lora", _set(P + "conv.bias", torch.ones(4)), r"conv\.bias.*only the head and normalisation"),
    "a whole weight": ("peft_lora", _set(P + "grouped.weight", torch.ones(4, 2, 3, 3)), "only the head and normalisation"),
    "a bias of LoRA's": ("peft_lora", _set(P + "conv.lora_B.bias", torch.ones(4)), r"lora_B\.bias: a bias"),
    "another network's names": (
        "peft_lora", lambda t, c: t.update({k.replace("conv", "net.conv"): t.pop(k) for k in list(t) if "conv" in k}),
        r"no module 'net\.conv'; its names begin with 'net\.'",
    ),
    "no B": ("peft_lora", _without(P + "conv.lora_B.weight"), r"conv\.lora_A.*missing"),
    "another shape": ("peft_lora", _set(P + "linear.lora_A.weight", torch.ones(2, 5)), r"linear.*\(2, 5\).*another network"),
    "no values": ("peft_lora", lambda t, c: [t.clear(), t.update(x=torch.ones(1))], "x: expected a name that begins"),
    "not finite": ("peft_lora", _set(P + "linear.lora_A.weight", torch.full((2, 4), torch.nan)), "linear.*no finite numbers"),
    "beyond half": ("peft_lora", _set(P + "linear.lora_A.weight", torch.full((2, 4), 1e6)), "linear.*beyond half precision"),
    "OFT": ("peft_lora", _set(P + "conv.oft_r.weight", torch.ones(1)), r"conv\.oft_r\.weight: OFT"),
    "whole numbers": ("peft_lora", _set(P + "linear.lora_A.weight", torch.ones(2, 4).int()), "linear.*I32.*F32"),
    "another rank": ("peft_lora", _set("r", 4), r"rank 2, adapter_config\.json says 4"),
    "a residual start": ("peft_lora", _set("init_lora_weights", "pissa"), "init_lora_weights='pissa'.*own weights"),
    "an unknown option": ("peft_lora", _set("use_sparkle", True), "use_sparkle=True changes what the values mean"),
    "a method not here": ("peft_lora", _set("peft_type", "LOHA"), "peft_type='LOHA'.*LORA"),
    "no method": ("peft_lora", _set("peft_type", ["LORA"]), "peft_type=.*LORA"),
    "a regular expression": ("peft_lora", _set("alpha_pattern", {"(a+)+$": 3}), "alpha_pattern.*not regular expressions"),
    "no number": ("peft_lora", _set("lora_alpha", "3"), "lora_alpha='3'.*number"),
    "two methods": ("lycoris_lora", _set(L + "conv.dora_scale", torch.ones(4, 1, 1, 1)), "one method, got dora, lora"),
    "the other method": ("peft_lora", _set("use_dora", True), "use_dora=True, the file's values say lora"),
    "LoHa": ("lycoris_lora", _set(L + "conv.hada_w1_a", torch.ones(4, 1)), r"conv\.hada_w1_a: LoHa"),
    "Tucker's LoKr": ("lycoris_lokr", _set(L + "conv.lokr_t2", torch.ones(1, 1, 3, 3)), r"conv\.lokr_t2: .*Tucker"),
    "no alpha": ("lycoris_lora", _without(L + "conv.alpha"), r"conv\..*expected one alpha"),
    "factors of inputs": ("lycoris_ia3", _set(L + "conv.on_input", torch.tensor(True)), "inputs are scaled by no method here"),
    "norms of inputs": ("lycoris_dora", _set(L + "conv.dora_scale", torch.ones(1, 3, 1, 1)), r"m has the shape \(1, 3, 1, 1\)"),
    "a factor without axes": (
        "lycoris_lokr",
        lambda t, c: (
            t.pop(L + "conv.lokr_w1"),
            t.update({L + "conv.lokr_w1_a": torch.ones(2, 1), L + "conv.lokr_w1_b": torch.tensor(1.0)}),
        ),
        r"conv.*w1_b has the shape \(\)",
    ),
    "another split": (
        "lycoris_lokr",
        lambda t, c: t.update({L + "linear.lokr_w1": torch.ones(3, 2), L + "linear.lokr_w2_a": torch.ones(2, 1)}),
        "split",
    ),
    "a product that would fill the memory": (
        "lycoris_lokr",
        lambda t, c: (
            t.pop(L + "conv.lokr_w1"),
            t.update({L + "conv.lokr_w1_a": torch.ones(500_000, 1), L + "conv.lokr_w1_b": torch.ones(1, 500_000)}),
        ),
        "another shape of weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_map_of_a_method_is_refused_by_name(unpacked: Path, tmp_path: Path, what: str) -> None:
    reference, change, message = REFUSED[what]
    net, _ = network()
    with pytest.raises(InputError, match=message) as refused:
        read_adapter(forged(unpacked, tmp_path, reference, change), net)
    assert str(tmp_path) in str(refused.value), "it names the file"


@torch.no_grad()
def test_layers_are_saved_whole_whatever_they_are_called(tmp_path: Path) -> None:
    """Their names may begin as those of other methods' values do, and end as those of one here."""
    parts = {"oft_norm": nn.BatchNorm1d(3), "diff": nn.BatchNorm1d(3), "linear": nn.Linear(3, 4, bias=False)}
    parts |= {"hada_norm": nn.BatchNorm1d(4), "lora_head": nn.Linear(4, 2)}
    net = MaskedNetwork(nn.Sequential(OrderedDict(parts)), head="lora_head").eval()
    tensors = {f"{P}linear.lora_A.weight": torch.ones(1, 3), f"{P}linear.lora_B.weight": torch.ones(4, 1)}
    saved = {name: tensor + 1 for name, tensor in net.backbone.state_dict().items() if "linear" not in name}
    saved |= {"lora_head.weight": torch.ones(5, 4), "lora_head.bias": torch.ones(5)}
    save_file(tensors | {P + name: tensor for name, tensor in saved.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    found = read_adapter(tmp_path, net)
    assert found.head.keys() == {"weight", "bias"}
    assert found.norm.keys() == saved.keys() - {"lora_head.weight", "lora_head.bias"}


@pytest.mark.parametrize(("patterns", "refused"), [(["2"], True), (["conv2"], True), (["onv"], False), (["xconv2"], True)])
def test_feedforward_modules_are_found_as_peft_finds_them(tmp_path: Path, patterns: list[str], refused: bool) -> None:
    """By how a name ends, also within a part of it."""
    net = MaskedNetwork(nn.Sequential(OrderedDict(xconv2=nn.Conv2d(3, 4, 1, bias=False))))
    save_file({f"{P}xconv2.ia3_l": torch.ones(1, 4, 1, 1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "feedforward_modules": patterns}))
    if refused:
        with pytest.raises(InputError, match=r"xconv2\.ia3_l: feedforward_modules scales this layer's inputs"):
            read_adapter(tmp_path, net)
    else:
        assert read_adapter(tmp_path, net).method.name == "ia3"


def test_what_is_no_adapter_at_all_is_refused(unpacked: Path, tmp_path: Path) -> None:
    net, _ = network()
    with pytest.raises(InputError, match="no adapter at"):
        read_adapter(tmp_path / "nowhere", net)
    with pytest.raises(InputError, match=r"neither adapter_model\.safetensors nor lycoris\.safetensors"):
        read_adapter(tmp_path, net)
    file = tmp_path / "adapter_model.safetensors"
    whole = (unpacked / "peft_lora" / file.name).read_bytes()
    file.write_bytes(whole)
    with pytest.raises(InputError, match=r"no adapter_config\.json beside it"):
        read_adapter(file, net)
    for cut in (b"", whole[:50], whole[:-4], b"\xff" * 100):
        file.write_bytes(cut)
        with pytest.raises(InputError, match="damaged"):
            read_adapter(file, net)
    save_file({L + "conv.alpha": torch.zeros(5_000_000)}, tmp_path / "large.safetensors")
    with pytest.raises(InputError, match="bytes, more than any adapter"):
        read_adapter(tmp_path / "large.safetensors", net)
    module = backbone()[0]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    save_file({L + "0.weight": torch.ones(4), L + "0.on_input": torch.tensor(False)}, tmp_path / "tied.safetensors")
    with pytest.raises(InputError, match=r"0\.weight and 1\.weight are one tensor"):
        read_adapter(tmp_path / "tied.safetensors", MaskedNetwork(tied))
    with pytest.raises(InputError, match=r"grouped\.weight is not among the weights"):
        read_adapter(unpacked / "lycoris_lora" / "lycoris.safetensors", MaskedNetwork(module, select=["conv.*", "linear.*"]))


@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_read_within_bounds(unpacked: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever byte of a file or of a configuration changes: one message, or an adapter of finite values."""
    net, _ = network()
    reference = data.draw(st.sampled_from(["peft_dora", "peft_lokr", "lycoris_lokr", "lycoris_ia3"]))
    names = [p.name for p in (unpacked / reference).iterdir() if p.name != "expected.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes((unpacked / reference / name).read_bytes())
    name = data.draw(st.sampled_from(names))
    content = bytearray((tmp_path / name).read_bytes())
    end = min(len(content), 2500)  # the header, and then all values are alike
    for place in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(bytes(content))
    file = tmp_path / ("adapter_model.safetensors" if reference.startswith("peft") else "lycoris.safetensors")
    try:
        found = read_adapter(file, net)
    except InputError:
        return
    assert all(value.isfinite().all() for parts in found.values.values() for value in parts.values())


def test_what_has_no_form_in_a_library_is_not_written(tmp_path: Path) -> None:
    net = MaskedNetwork(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")))
    other = MaskedNetwork(nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.Embedding(3, 4), nn.Linear(4, 4)))
    nn.init.ones_(net.backbone[0].bias)
    net.add_task("all", masks.LoRA(rank=1))
    net.add_task("second", masks.LoRA(rank=1, target_weights=["1.*"]))
    net.add_task("factors", masks.IA3())
    with torch.no_grad():
        next(net.state("factors").masks.parameters()).mul_(2)
    net.add_task("signs", masks.SparseSigns())
    other.add_task("transposed", masks.LoRA(rank=1))
    other.add_task("embedding", masks.IA3(target_weights=["1.*"]))
    for its, task, form, message in (
        (net, "all", "peft", r"0\.weight.*mixes the groups: use the form lycoris"),
        (net, "second", "peft", r"1\.weight.*padding_mode='reflect': use the form lycoris"),
        (net, "factors", "peft", r"0\.weight.*bias too: use the form lycoris"),
        (net, "signs", "lycoris", "sparse_signs, which neither"),
        (other, "transposed", "lycoris", r"0\.weight, of a layer that lycoris does not adapt.*target_weights"),
        (other, "embedding", "peft", r"1\.weight.*no ia3 of an embedding"),
        (other, "embedding", "lycoris", r"1\.weight.*does not adapt embeddings"),
    ):
        with pytest.raises(InputError, match=message):
            write_adapter(its, task, tmp_path / "out", form)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    assert write_adapter(net, "all", tmp_path / "out", "lycoris") == [tmp_path / "out" / "lycoris.safetensors"]


def test_target_weights_leave_the_others_to_the_backbone(tmp_path: Path) -> None:
    net, x = network()
    for method in (masks.LoRA(target_weights=["conv.*"]), masks.IA3(target_weights=["conv.*"])):
        state = net.add_task(method.name, method)
        assert [name for name, _ in state.named_masks()] == ["conv.weight"]
        with torch.no_grad():
            for parameter in state.masks.parameters():
                parameter += 0.1
        net.save_task(method.name, tmp_path / method.name)
        net.load_task(tmp_path / method.name, name=method.name + "_again")
        assert net.state(method.name + "_again").method == method
        assert torch.equal(net(x, task=method.name), net(x, task=method.name + "_again"))
    for wrong in (["nothing.*"], [], "conv.*", [3]):
        with pytest.raises(InputError, match="target_weights"):
            net.add_task("wrong", masks.LoRA(target_weights=wrong))  # type: ignore[arg-type]
    assert "wrong" not in net.tasks()
