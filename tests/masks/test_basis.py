"""Bases of masks against equation 1 of ImpressLearn, transcribed literally, and their files."""

import copy
import json
import struct
import time
from pathlib import Path

import pytest
import torch
from mask_zoo import LAYERS, layer
from torch import Tensor, nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks import Layer, basis_of_tasks
from img2img.masks.basis import Basis, pack
from img2img.masks.basis_file import MAX_MEMBERS, VERSION, Kind
from img2img.masks.methods.impresslearn import ImpressLearn
from img2img.masks.methods.supsup import SupSup

KINDS: list[Kind] = ["binary", "signed", "real"]


def basis_of(found: dict[str, Tensor], kind: Kind = "binary") -> Basis:
    """The basis of given masks, (K, *shape) by weight."""
    parts = {}
    for name, stack in found.items():
        rows = [pack(kind, mask) for mask in stack]
        parts[name] = {part: torch.stack([row[part] for row in rows]) for part in rows[0]}
    count = len(next(iter(found.values())))
    return Basis(kind, [str(i) for i in range(count)], {name: stack.shape[1:] for name, stack in found.items()}, parts)


def random_masks(kind: Kind, *shape: int) -> Tensor:
    if kind == "real":
        return torch.randn(shape).half()
    if kind == "signed":
        return torch.randint(-1, 2, shape, dtype=torch.int8)
    return torch.rand(shape) < 0.3


def combined(found: Tensor, alpha: Tensor, weight: Tensor) -> Tensor:
    """Equation 1, mask by mask."""
    total = torch.zeros_like(weight)
    for mask, coefficient in zip(found, alpha, strict=True):
        total = total + coefficient * (mask.to(weight.dtype) * weight)
    return total


def _layers(*shapes: tuple[int, ...]) -> dict[str, Layer]:
    return {f"layer{i}.weight": layer(torch.randn(shape)) for i, shape in enumerate(shapes)}


def _network(*methods: masks.MaskMethod, layers: str = "conv2d") -> tuple[MaskedNetwork, Tensor]:
    """Tasks "0", "1", ... of those methods."""
    backbone, x = LAYERS[layers]()
    net = MaskedNetwork(backbone)
    for i, method in enumerate(methods):
        net.add_task(str(i), method)
    return net, x


def test_forward_and_gradient_on_a_hand_sized_tensor() -> None:
    basis = basis_of({"w": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()})
    weight, alpha = torch.tensor([2.0, -3.0, 5.0, 7.0]), torch.tensor([0.5, -2.0], requires_grad=True)
    effective = basis.combine("w", alpha, weight)
    assert effective.tolist() == [1.0, 4.5, -10.0, 0.0]
    effective.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert alpha.grad is not None
    assert alpha.grad.tolist() == [2.0 - 30.0, -30.0 + 500.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7, 16, 37])  # decoded in groups of 16
@pytest.mark.parametrize("shape", [(5,), (13, 11), (6, 4, 3, 3), (3, 2, 2, 2, 2)])
def test_combinations_and_their_gradients_are_those_of_the_equation(kind: Kind, count: int, shape: tuple[int, ...]) -> None:
    found = random_masks(kind, count, *shape)
    weight, upstream, alpha = torch.randn(shape), torch.randn(shape), torch.randn(count, requires_grad=True)
    reference = alpha.detach().clone().requires_grad_()
    expected = combined(found, reference, weight)
    expected.backward(upstream)
    basis = basis_of({"a.w": found}, kind)
    effective = basis.combine("a.w", alpha, weight)
    effective.backward(upstream)
    assert torch.allclose(effective, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(alpha.grad, reference.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_larger_than_what_is_decoded_at_once_is_combined_whole(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.masks.basis._ELEMENTS", {"cpu": 64})
    monkeypatch.setattr("img2img.masks.basis._MEMBERS", 3)
    found = random_masks(kind, 7, 203)
    weight, upstream, alpha = torch.randn(203), torch.randn(203), torch.randn(7, requires_grad=True)
    effective = basis_of({"w": found}, kind).combine("w", alpha, weight)
    effective.backward(upstream)
    assert torch.allclose(effective, combined(found, alpha.detach(), weight), rtol=1e-5, atol=1e-5)
    assert torch.allclose(alpha.grad, (found.float() * weight * upstream).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_combination_has_the_weights_type_and_memory_format(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    found = random_masks("binary", 3, 6, 4, 3, 3)
    weight = torch.randn(6, 4, 3, 3).to(dtype).to(memory_format=memory_format)
    upstream = torch.randn(6, 4, 3, 3).to(dtype).to(memory_format=memory_format)
    alpha = torch.randn(3, requires_grad=True)
    reference = alpha.detach().double().requires_grad_()
    expected = combined(found, reference, weight.double())
    expected.backward(upstream.double())
    effective = basis_of({"w": found}).combine("w", alpha, weight)
    effective.backward(upstream)
    assert effective.dtype == dtype
    assert effective.stride() == weight.stride()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(effective.double(), expected, rtol=tolerance, atol=tolerance)
    assert alpha.grad.dtype == torch.float32
    assert torch.allclose(alpha.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)


def test_autocast_changes_neither_a_combination_nor_its_gradient() -> None:
    basis, weight = basis_of({"w": random_masks("binary", 5, 300)}), torch.randn(300)
    results = []
    for enabled in (False, True):
        alpha = torch.linspace(-1, 1, 5).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            effective = basis.combine("w", alpha, weight)
            effective.square().sum().backward()
        results.append((effective.detach(), alpha.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_multiplier_is_summed_in_the_order_of_the_masks_so_that_it_is_the_same_bits_everywhere() -> None:
    found, alpha = random_masks("binary", 20, 4096), torch.randn(20)
    expected = torch.zeros(4096)
    for mask, coefficient in zip(found, alpha, strict=True):
        expected = expected + mask * coefficient
    basis = basis_of({"w": found})
    assert torch.equal(basis.multiplier("w", alpha), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(basis.multiplier("w", alpha), expected)
    finally:
        torch.set_num_threads(threads)


def test_nothing_but_the_weight_is_saved_for_the_backward_pass() -> None:
    saved: list[Tensor] = []
    weight = torch.randn(8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        basis_of({"w": random_masks("binary", 3, 8, 8)}).combine("w", torch.ones(3, requires_grad=True), weight)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr()]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_kept_packed_and_read_back_as_they_were(kind: Kind) -> None:
    found = random_masks(kind, 5, 6, 4, 3, 3)
    basis = basis_of({"a.weight": found}, kind)
    assert basis.masks("a.weight").dtype == found.dtype
    assert torch.equal(basis.masks("a.weight"), found)
    size = 6 * 4 * 3 * 3
    expected = {"binary": 5 * size // 8, "signed": 2 * 5 * size // 8, "real": 5 * size * 2}
    assert sum(b.numel() * b.element_size() for b in basis.buffers()) == expected[kind]
    assert list(basis.parameters()) == []


# ---------------------------------------------------------------------- random masks


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_random_masks_have_exactly_the_rounded_number_of_ones(density: float, kind: Kind) -> None:
    layers = _layers((7, 5, 3, 3), (40, 9), (3,))
    basis = Basis.random(layers, count=4, density=density, seed=1, kind=kind)
    for name, described in layers.items():
        n = described.weight.numel()
        nonzero = (basis.masks(name) != 0).flatten(1).sum(1)
        assert nonzero.tolist() == [max(1, round(density * n))] * 4
    assert (basis.count, basis.kind, basis.names) == (4, kind, ("0", "1", "2", "3"))


def test_random_masks_have_erdos_renyi_densities_like_trained_ones_and_a_file_keeps_them(tmp_path: Path) -> None:
    layers = _layers((16, 16, 3, 3), (40, 90), (5, 40))
    basis = Basis.random(layers, count=3, density=0.1, seed=1, allocation="erdos_renyi")
    trained = SupSup(density=0.1, allocation="erdos_renyi").counts(layers)
    assert len(set(trained.values())) == 3
    for name, count in trained.items():
        assert basis.masks(name).flatten(1).sum(1).tolist() == [count] * 3
    path = basis.save(tmp_path / "b.safetensors")
    assert Basis.load(path, layers).sha256 == basis.sha256 != Basis.random(layers, count=3, density=0.1, seed=1).sha256
    assert Basis.random(layers, count=3, density=0.1, seed=1).recipe == {"density": 0.1, "seed": 1}
    with pytest.raises(InputError, match="allocation"):
        Basis.random(layers, count=3, density=0.1, seed=1, allocation="global")  # type: ignore[arg-type]


def test_random_masks_overlap_by_chance_alone_and_cover_all_elements_alike() -> None:
    basis = Basis.random({"w": layer(torch.zeros(400, 100))}, count=20, density=0.2, seed=0)
    found = basis.masks("w").flatten(1).double()
    overlap = found @ found.T / found.sum(1)
    off = overlap[~torch.eye(20, dtype=torch.bool)]
    # Hypergeometric: mean 0.2, deviation sqrt(0.2 * 0.8 * 0.8 / 8000) = 0.004.
    assert (off - 0.2).abs().max() < 0.02
    assert found.view(20, 400, 100).mean((0, 1)).std() < 0.01
    assert found.view(20, 400, 100).mean((0, 2)).std() < 0.02


def test_random_signs_are_half_negative() -> None:
    found = Basis.random({"w": layer(torch.zeros(40_000))}, count=2, density=0.5, seed=0, kind="signed").masks("w")
    assert ((found < 0).sum(1) / 20_000).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_random_masks_follow_from_the_seed_alone() -> None:
    layers = _layers((7, 5, 3, 3), (40, 9))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    basis = Basis.random(layers, count=3, density=0.2, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(2)
    turned = {name: layer(layers[name].weight) for name in reversed(layers)}
    four = turned["layer0.weight"].weight
    turned["layer0.weight"] = layer(four.double().to(memory_format=torch.channels_last))
    assert Basis.random(turned, count=3, density=0.2, seed=5).sha256 == basis.sha256
    assert Basis.random(layers, count=3, density=0.2, seed=6).sha256 != basis.sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "a whole number of masks"),
        ({"density": 0.0}, "above 0 and up to 1"),
        ({"density": 1.5}, "above 0 and up to 1"),
        ({"seed": 1.5}, "the masks follow from it"),
        ({"kind": "real"}, "expected one of 'binary', 'signed'"),
    ],
)
def test_random_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Basis.random(_layers((3, 2)), **({"count": 2, "density": 0.5, "seed": 0} | options))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- masks of tasks


@pytest.mark.parametrize("kernels", [False, True])
def test_binary_masks_are_those_of_the_tasks(kernels: bool) -> None:
    granularity = "kernel" if kernels else "element"
    net, _ = _network(*[masks.Piggyback(start="uniform", granularity=granularity)] * 3)
    net.freeze_task("1")
    basis = basis_of_tasks(net, ["2", "1"])
    assert basis.names == ("2", "1")
    for name in net.roles.masked:
        expected = torch.stack([net.state(t).binaries()[name] for t in ("2", "1")])
        assert torch.equal(basis.masks(name), expected)


def test_a_basis_keeps_the_masks_of_a_task_that_trains_on() -> None:
    net, _ = _network(masks.Piggyback(start="uniform"))
    basis = basis_of_tasks(net, ["0"])
    before = {name: basis.masks(name).clone() for name in net.roles.masked}
    with torch.no_grad():
        for parameter in net.state("0").masks.parameters():
            parameter.neg_()
    assert all(torch.equal(basis.masks(name), mask) for name, mask in before.items())
    assert basis_of_tasks(net, ["0"]).sha256 != basis.sha256


@pytest.mark.parametrize("granularity", ["element", "kernel"])
def test_signed_masks_are_the_ternary_ones_and_binary_ones_count_as_they_are(granularity: str) -> None:
    net, _ = _network(
        masks.Piggyback(start="uniform", ternary=True, granularity=granularity),  # type: ignore[arg-type]
        masks.Piggyback(start="uniform"),
    )
    basis = basis_of_tasks(net, ["0", "1"], kind="signed")
    for name, weight in net.masked_weights().items():
        ternary, binary = basis.masks(name)
        assert torch.equal(weight * ternary, net.state("0").effective(net.masked_weights())[name])
        assert torch.equal(binary.bool(), net.state("1").binaries()[name])
        assert {-1, 0, 1} == set(ternary.flatten().tolist()) or ternary.numel() < 30


def test_real_masks_are_the_multipliers_of_any_method_and_zero_where_the_weight_is() -> None:
    net, _ = _network(masks.Piggyback(start="uniform", ternary=True))
    first = net.roles.masked[0]
    with torch.no_grad():
        net.masked_weights()[first].flatten()[:3] = 0.0
    net.add_basis("b", basis_of_tasks(net, ["0"], kind="signed"))
    net.add_task("scaled", ImpressLearn(basis="b"))
    with torch.no_grad():
        for alpha in net.state("scaled").masks.parameters():
            alpha.fill_(-0.7)
    basis = basis_of_tasks(net, ["0", "scaled"], kind="real")
    for name, weight in net.masked_weights().items():
        plain, scaled = basis.masks(name)
        ternary = net.bases()["b"].masks(name)[0].half() * (weight != 0)
        assert plain.dtype == torch.float16
        assert torch.equal(plain, ternary)
        assert torch.allclose(scaled, -0.7 * ternary, rtol=1e-3)
    assert (basis.masks(first)[:, 0, 0, 0, :3] == 0).all()


def test_a_multiplier_beyond_half_precision_is_cut_off_and_not_infinite() -> None:
    net, _ = _network(masks.Piggyback())
    net.add_basis("b", basis_of_tasks(net, ["0"]))
    net.add_task("huge", ImpressLearn(basis="b"))
    with torch.no_grad():
        for alpha in net.state("huge").masks.parameters():
            alpha.fill_(-1e6)
    name = net.roles.masked[0]
    assert (basis_of_tasks(net, ["huge"], kind="real").masks(name) == -65504).all()


def test_tasks_that_cannot_make_a_basis_are_refused() -> None:
    net, _ = _network(masks.Piggyback(), masks.Identity())
    with pytest.raises(InputError, match=r"'1' \(identity\).*0\.weight"):
        basis_of_tasks(net, ["0", "1"])
    with pytest.raises(InputError, match=r"'1' \(identity\) has no real mask"):
        basis_of_tasks(net, ["1"], kind="real")
    with pytest.raises(InputError, match="each once"):
        basis_of_tasks(net, ["0", "0"])
    with pytest.raises(InputError, match="one or more names"):
        basis_of_tasks(net, [])
    with pytest.raises(InputError, match="one or more names"):
        basis_of_tasks(net, "0")
    with pytest.raises(InputError, match="no task 'x'"):
        basis_of_tasks(net, ["x"])
    with pytest.raises(InputError, match="'binary', 'signed', 'real'"):
        basis_of_tasks(net, ["0"], kind="ternary")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no masks for 'other'"):
        basis_of_tasks(net, ["0"]).masks("other")


# ---------------------------------------------------------------------- moves and copies


@pytest.mark.parametrize("kind", KINDS)
def test_casts_and_memory_formats_leave_the_masks_as_they_are(kind: Kind) -> None:
    found = random_masks(kind, 3, 4, 2, 3, 3)
    basis = basis_of({"w": found}, kind)
    before = basis.sha256
    for cast in (basis.double(), basis.half(), basis.bfloat16(), basis.float(), basis.to(memory_format=torch.channels_last)):
        assert torch.equal(cast.masks("w"), found)
        assert cast.masks("w").dtype == found.dtype
        assert cast._hash() == before


def test_a_basis_moves_to_another_device() -> None:
    basis = basis_of({"w": random_masks("real", 3, 4)}, "real").to("meta")
    assert all(b.device.type == "meta" for b in basis.buffers())


def test_a_copy_is_equal_and_independent() -> None:
    basis = basis_of({"w": random_masks("signed", 3, 40)}, "signed")
    copied = copy.deepcopy(basis)
    assert copied.sha256 == basis.sha256
    assert copied.names == basis.names
    next(copied.buffers()).zero_()
    assert basis._hash() == basis.sha256


# ---------------------------------------------------------------------- files


def _saved(tmp_path: Path, kind: Kind = "binary") -> tuple[MaskedNetwork, Basis, Path]:
    net, _ = _network(*[masks.Piggyback(start="uniform", ternary=True)] * 2)
    basis = basis_of_tasks(net, ["0", "1"], kind=kind)
    return net, basis, basis.save(tmp_path / "basis.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_masks_of_tasks(kind: Kind, tmp_path: Path) -> None:
    net, basis, path = _saved(tmp_path, kind)
    again = Basis.load(path, net.layers())
    assert (again.kind, again.names, again.sha256, again.recipe) == (kind, ("0", "1"), basis.sha256, None)
    for name in net.roles.masked:
        assert torch.equal(again.masks(name), basis.masks(name))


@pytest.mark.parametrize("kind", ["binary", "signed"])
def test_a_file_of_random_masks_holds_how_they_were_drawn_alone(kind: Kind, tmp_path: Path) -> None:
    layers = {"w": layer(torch.zeros(100, 1000))}
    basis = Basis.random(layers, count=8, density=0.1, seed=7, kind=kind)
    path = basis.save(tmp_path / "basis.safetensors")
    assert path.stat().st_size < 1000
    again = Basis.load(path, layers)
    assert again.sha256 == basis.sha256
    assert torch.equal(again.masks("w"), basis.masks("w"))
    assert again.recipe == {"density": 0.1, "seed": 7}


def test_the_same_masks_have_the_same_hash_and_any_difference_another() -> None:
    found = random_masks("binary", 3, 5, 5)
    hashes = [
        basis_of({"w": found}).sha256,
        basis_of({"v": found}).sha256,
        basis_of({"w": found.view(3, 25)}).sha256,
        basis_of({"w": found.flip(0)}).sha256,
        basis_of({"w": found.to(torch.int8)}, "signed").sha256,
    ]
    assert len(set(hashes)) == 5
    assert basis_of({"w": found.clone()}).sha256 == hashes[0]


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.95])
def test_a_changed_byte_is_noticed_wherever_it_is(place: float, tmp_path: Path) -> None:
    net, _, path = _saved(tmp_path)
    blob = bytearray(path.read_bytes())
    blob[int(place * len(blob))] ^= 0x10
    path.write_bytes(blob)
    with pytest.raises(InputError, match=r"damaged|changed|no img2img basis"):
        Basis.load(path, net.layers())


def test_a_changed_header_is_noticed_even_where_it_makes_sense(tmp_path: Path) -> None:
    net, _, path = _saved(tmp_path)
    blob = path.read_bytes()
    changed = blob.replace(rb"\"names\": [\"0\"", rb"\"names\": [\"7\"")
    assert changed != blob
    path.write_bytes(changed)
    with pytest.raises(InputError, match="checksum differs"):
        Basis.load(path, net.layers())


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_off_file_is_refused(length: int, tmp_path: Path) -> None:
    net, _, path = _saved(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match="damaged"):
        Basis.load(path, net.layers())


def _with_header(path: Path, **changes: object) -> None:
    """Change the header and give it the checksum that fits."""
    import safetensors.torch

    from img2img.masks.file_header import checksum

    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(blob)
    header = json.loads(metadata["header"]) | changes
    header["checksum"] = checksum(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata=metadata | {"header": json.dumps(header)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": VERSION + 1}, "upgrade it"),
        ({"sha256": "0" * 64}, "not those that were saved"),
        ({"names": ["0"]}, "damaged"),
        ({"kind": "real"}, "damaged"),
        ({"kind": "odd"}, "damaged"),
        ({"recipe": {"seed": 1}}, "damaged"),
        ({"shapes": 3}, "damaged"),
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    net, _, path = _saved(tmp_path)
    _with_header(path, **changes)
    with pytest.raises(InputError, match=message):
        Basis.load(path, net.layers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": [str(i) for i in range(60_000)]}, "damaged"),
        ({"names": ["x" * 5000, "1"]}, "damaged"),
        ({"names": [1, 2]}, "damaged"),
        ({"names": "ab", "recipe": {"density": 0.1, "seed": [1]}}, "seed"),
        ({"recipe": {"density": "x", "seed": 1}}, "density"),
        ({"recipe": {"density": 0.1, "seed": 10**30}}, "64 bits"),
        ({"recipe": [0.1, 1]}, "damaged"),
        ({"kind": "real"}, "kind"),
        ({"kind": ["binary"]}, "kind"),
        ({"version": [1]}, "damaged"),
        ({"shapes": {"layer0.weight": ["x"]}}, "damaged"),
        ({"sha256": 3}, "damaged"),
        ({"names": ["x" * 4_500_000]}, "header"),
    ],
)
def test_a_recipe_is_checked_before_it_is_followed(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    layers = _layers((30, 20))
    path = Basis.random(layers, count=3, density=0.1, seed=7).save(tmp_path / "basis.safetensors")
    _with_header(path, **changes)
    began = time.perf_counter()
    with pytest.raises(InputError, match=message):
        Basis.load(path, layers)
    assert time.perf_counter() - began < 10


def test_no_more_random_masks_are_drawn_than_a_file_may_ask_for() -> None:
    with pytest.raises(InputError, match=f"1 to {MAX_MEMBERS}"):
        Basis.random(_layers((30, 20)), count=MAX_MEMBERS + 1, density=0.1, seed=7)
    large = {"weight": Layer(torch.empty(1 << 15, 1 << 15, device="meta"))}
    with pytest.raises(InputError, match="values in its masks"):
        Basis.random(large, count=5, density=0.1, seed=7)


def test_random_masks_that_come_out_different_are_refused(tmp_path: Path) -> None:
    layers = _layers((30, 20))
    path = Basis.random(layers, count=3, density=0.1, seed=7).save(tmp_path / "basis.safetensors")
    _with_header(path, recipe={"density": 0.1, "seed": 8})
    with pytest.raises(InputError, match="draws other random masks"):
        Basis.load(path, layers)


def test_files_that_are_no_basis_or_of_another_network_are_refused(tmp_path: Path) -> None:
    net, _, path = _saved(tmp_path)
    other = MaskedNetwork(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)))
    with pytest.raises(InputError, match="other weights than this network's"):
        Basis.load(path, other.layers())
    with pytest.raises(InputError, match="no basis file"):
        Basis.load(tmp_path / "none", net.layers())
    task = net.save_task("0", tmp_path / "task.safetensors")
    with pytest.raises(InputError, match="no img2img basis"):
        Basis.load(task, net.layers())
    (tmp_path / "text").write_text("x" * 100)
    with pytest.raises(InputError, match="damaged or no basis file"):
        Basis.load(tmp_path / "text", net.layers())
