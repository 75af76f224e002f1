"""Task files: what is in them, and that nothing damaged or foreign gets in."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mask_zoo import WithHead, evaluate, head, train
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks import build_method, coding, file_header, task_header
from img2img.masks.file_header import checksum
from img2img.masks.heads import build_head, describe_head
from img2img.masks.storage import read_header, read_task_file, storage_table


@pytest.fixture
def net() -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("a", masks.Piggyback(start="uniform"), head=head())
    return net


@pytest.fixture
def path(net: MaskedNetwork, tmp_path: Path) -> Path:
    train(net, "a", torch.randn(4, 3, 8, 8))
    return net.save_task("a", tmp_path / "a.safetensors")


def _masks(net: MaskedNetwork, task: str) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in net.state(task).binaries().items()}


def _same_masks(net: MaskedNetwork, a: str, b: str) -> bool:
    ones, others = _masks(net, a), _masks(net, b)
    return ones.keys() == others.keys() and all(torch.equal(ones[n], others[n]) for n in ones)


def _set_density(net: MaskedNetwork, task: str, density: float) -> None:
    with torch.no_grad():
        for mask in net.state(task).masks.values():
            mask.score.copy_(torch.where(torch.rand(mask.score.shape) < density, 0.01, 0.0))
    net.freeze_task(task)


def test_a_file_holds_coded_masks_and_never_scores(net: MaskedNetwork, path: Path) -> None:
    header, tensors = read_task_file(path)
    weights, state = net.masked_weights(), net.state("a")
    coded = {k: v for k, v in tensors.items() if k.startswith("mask/")}
    assert coded.keys() == {f"mask/{name}/mask" for name in weights}
    for name, mask in state.binaries().items():
        assert torch.equal(coded[f"mask/{name}/mask"], coding.encode(mask))
        assert header["coded"][f"mask/{name}/mask"] == {
            "dtype": "bool", "shape": list(mask.shape), "entropy_bits": coding.entropy_bits(mask)
        }  # fmt: skip
    assert {k.partition("/")[0] for k in tensors} == {"mask", "norm", "head"}
    assert not any("score" in k for k in tensors)
    assert header["backbone_sha256"] == net.backbone_sha256
    assert header["method"] == {"name": "piggyback", "options": masks.Piggyback(start="uniform").options()}
    assert header["densities"] == state.densities()
    assert header["relative_to"] is header["basis"] is None


def test_the_header_says_what_the_masks_take_and_what_the_ideal_is(net: MaskedNetwork, path: Path) -> None:
    header, tensors = read_task_file(path)
    weights = net.masked_weights()
    assert header["storage"] == {
        "weights": 3 * 8 * 9 + 8 * 8 * 9,
        "coded_bytes": sum(t.numel() for k, t in tensors.items() if k.startswith("mask/")),
        "entropy_bits": pytest.approx(sum(coding.entropy_bits(m) for m in net.state("a").binaries().values())),
        "layers": {name: weight.numel() for name, weight in weights.items()},
    }


@pytest.mark.parametrize("method", [masks.KSM(), masks.Piggyback(start="uniform", ternary=True), masks.Identity()])
def test_the_rows_of_the_storage_table_make_up_the_file(method: masks.MaskMethod, tmp_path: Path) -> None:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("a", method, head=head())
    path = net.save_task("a", tmp_path / "a.safetensors")
    rows = storage_table(path)
    assert sum(row["bytes"] for row in rows) == path.stat().st_size
    parts = [row for row in rows if row["part"]]
    header = read_header(path)
    assert {(row["weight"], row["part"]) for row in parts} == {
        (name, part) for name, mask in net.state("a").named_masks() for part in mask.stored()
    }
    assert sum(row["bytes"] for row in parts) == header["storage"]["coded_bytes"]
    assert sum(row["entropy_per_weight"] * row["weights"] for row in parts) == pytest.approx(header["storage"]["entropy_bits"])
    for row in parts:
        assert row["bits_per_weight"] == 8 * row["bytes"] / net.masked_weights()[row["weight"]].numel()
        assert row["coder"] == ("raw" if row["part"] == "range" else row["coder"])
    by_kind = {row["weight"]: row["bytes"] for row in rows if not row["part"]}
    assert by_kind["(norm)"] == 4 * (4 * 8 * 2) + 2 * 8, "four vectors of two normalisations, and two counters"
    assert by_kind["(head)"] == 4 * (8 * 2 + 2)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_files_written_with_and_without_constriction_hold_the_same_masks(
    density: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    net = MaskedNetwork(backbone)
    net.add_task("a", masks.Piggyback())
    _set_density(net, "a", density)
    coded = net.save_task("a", tmp_path / "coded.safetensors")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "constriction", None)
        packed = net.save_task("a", tmp_path / "packed.safetensors")
        net.load_task(packed, name="b")
        if density == 0.01:
            with pytest.raises(InputError, match=r"pip install constriction"):
                net.load_task(coded, name="refused")
    net.load_task(coded, name="c")
    net.load_task(packed, name="d")
    assert net.tasks() == ("a", "b", "c", "d")
    assert all(_same_masks(net, "a", other) for other in "bcd")
    if density == 0.01:
        assert read_header(coded)["storage"]["coded_bytes"] < 0.2 * read_header(packed)["storage"]["coded_bytes"]


def test_the_head_and_norm_state_keep_their_type_and_follow_the_networks(tmp_path: Path) -> None:
    backbone = WithHead()
    net = MaskedNetwork(backbone, head="head")
    net.add_task("a", masks.Piggyback(start="uniform"), head=head())
    net.double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = evaluate(net, "a", x)
    path = net.save_task("a", tmp_path / "a.safetensors")
    net.load_task(path, name="b")
    assert torch.equal(evaluate(net, "b", x), expected)
    single = MaskedNetwork(backbone, head="head")
    single.load_task(path, name="b")
    assert {t.dtype for t in single.state("b").norm_tensors().values()} == {torch.float32, torch.int64}


def test_loading_draws_no_random_numbers(net: MaskedNetwork, path: Path) -> None:
    before = torch.get_rng_state()
    net.load_task(path, name="b")
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- relative to another task


@pytest.fixture
def similar() -> MaskedNetwork:
    """Task "b" has the masks of "a" but for one bit in fifty."""
    net = MaskedNetwork(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3)))
    net.add_task("a", masks.Piggyback())
    _set_density(net, "a", 0.5)
    state = net.add_task("b", masks.Piggyback(), start_from="a")
    with torch.no_grad():
        for mask in state.masks.values():
            flips = torch.rand(mask.score.shape) < 0.02
            mask.score.copy_(torch.where((mask.score >= 5e-3) ^ flips, 0.01, 0.0))
    return net


def _other(net: MaskedNetwork) -> MaskedNetwork:
    return MaskedNetwork(net.copy_backbone())


def test_masks_like_anothers_take_a_fraction_relative_to_it(similar: MaskedNetwork, tmp_path: Path) -> None:
    plain = similar.save_task("b", tmp_path / "plain.safetensors")
    path = similar.save_task("b", tmp_path / "b.safetensors", relative_to="a")
    first = similar.save_task("a", tmp_path / "a.safetensors")
    size = {p: read_header(p)["storage"]["coded_bytes"] for p in (plain, path)}
    assert size[path] < 0.25 * size[plain]
    ideal = sum(coding.entropy_bits(m, _masks(similar, "a")[n]) for n, m in _masks(similar, "b").items())
    assert read_header(path)["storage"]["entropy_bits"] == pytest.approx(ideal)
    assert "relative" in {row["coder"] for row in storage_table(path)}
    assert read_header(path)["relative_to"]["task"] == "a"
    other = _other(similar)
    other.load_task(first)
    other.load_task(path)
    assert _masks(other, "b").keys() == _masks(similar, "b").keys()
    assert all(torch.equal(mask, _masks(similar, "b")[name]) for name, mask in _masks(other, "b").items())


def test_a_file_that_gains_nothing_from_the_other_task_does_not_depend_on_it(similar: MaskedNetwork, tmp_path: Path) -> None:
    similar.add_task("c", masks.Piggyback())
    _set_density(similar, "c", 0.1)
    path = similar.save_task("c", tmp_path / "c.safetensors", relative_to="a")
    assert read_header(path)["relative_to"] is None
    _other(similar).load_task(path)


def test_masks_of_another_method_serve_too_where_the_shapes_agree(similar: MaskedNetwork, tmp_path: Path) -> None:
    kinds: dict[str, masks.MaskMethod] = {"affine": masks.Affine(), "kernel": masks.Piggyback(granularity="kernel")}
    coders = {}
    for name, method in kinds.items():
        similar.add_task(name, method, start_from="a")
        path = similar.save_task(name, tmp_path / f"{name}.safetensors", relative_to="a")
        similar.load_task(path, name=f"{name}-again")
        assert _same_masks(similar, name, f"{name}-again")
        coders[name] = {row["coder"] for row in storage_table(path) if row["part"] == "mask"}
    assert "relative" in coders["affine"]
    assert "relative" not in coders["kernel"]


def test_loading_needs_the_very_task_that_the_masks_are_relative_to(similar: MaskedNetwork, tmp_path: Path) -> None:
    path = similar.save_task("b", tmp_path / "b.safetensors", relative_to="a")
    first = similar.save_task("a", tmp_path / "a.safetensors")
    other = _other(similar)
    with pytest.raises(InputError, match="relative to the task 'a'"):
        other.load_task(path)
    other.add_task("a", masks.Piggyback())
    with pytest.raises(InputError, match="'a', which is in training"):
        other.load_task(path)
    assert not other.state("a").frozen, "and it is left in training"
    other.freeze_task("a")
    with pytest.raises(InputError, match="this network's of that name has others"):
        other.load_task(path)
    other.delete_task("a")
    other.load_task(first)
    assert other.load_task(path) == "b"


def test_a_task_is_saved_relative_to_another_frozen_one_alone(similar: MaskedNetwork, tmp_path: Path) -> None:
    similar.add_task("unfinished", masks.Piggyback())
    for name in ("unfinished", "b"):
        with pytest.raises(InputError, match="expected another task that is frozen"):
            similar.save_task("b", tmp_path / "b.safetensors", relative_to=name)
    with pytest.raises(InputError, match="no task 'nobody'"):
        similar.save_task("b", tmp_path / "b.safetensors", relative_to="nobody")


def test_registered_tasks_read_what_they_are_relative_to_and_a_circle_is_refused(similar: MaskedNetwork, tmp_path: Path) -> None:
    similar.freeze_task("b")
    plain = similar.save_task("a", tmp_path / "plain.safetensors")
    second = similar.save_task("b", tmp_path / "b.safetensors", relative_to="a")
    first = similar.save_task("a", tmp_path / "a.safetensors", relative_to="b")
    other = _other(similar)
    for path in (second, plain):
        other.register_task(path)
    assert all(torch.equal(mask, _masks(similar, "b")[name]) for name, mask in _masks(other, "b").items())
    circular = _other(similar)
    for path in (second, first):
        circular.register_task(path)
    for name in ("a", "b"):
        with pytest.raises(InputError, match="lead back to it"):
            circular.state(name)


# ---------------------------------------------------------------------- bases


def test_a_task_that_combines_a_basis_needs_that_very_basis(tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

    def network(seed: int | None) -> MaskedNetwork:
        net = MaskedNetwork(backbone)
        if seed is not None:
            net.add_basis("shared", masks.Basis.random(net.layers(), count=3, density=0.3, seed=seed))
        return net

    net = network(0)
    net.add_task("a", masks.ImpressLearn(basis="shared"))
    path = net.save_task("a", tmp_path / "a.safetensors")
    assert read_header(path)["basis"] == {"name": "shared", "sha256": net.bases()["shared"].sha256}
    with pytest.raises(InputError, match=r"basis 'shared'.*add_basis"):
        network(None).load_task(path)
    with pytest.raises(InputError, match=r"basis 'shared'.*this network's"):
        network(1).load_task(path)
    assert network(0).load_task(path) == "a"
    _forge(path, lambda header, tensors: header.update(basis=None))
    with pytest.raises(InputError, match=r"'shared', .* None"):
        network(1).load_task(path)


# ---------------------------------------------------------------------- damage


def test_another_backbone_is_refused_and_the_network_left_alone(net: MaskedNetwork, path: Path) -> None:
    other = MaskedNetwork(WithHead(), head="head")
    with pytest.raises(InputError, match="belongs to the backbone"):
        other.load_task(path)
    assert other.tasks() == ()


def test_any_flipped_byte_is_refused_or_loads_exactly(net: MaskedNetwork, path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    expected = evaluate(net, "a", x)
    blob = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for position in torch.randint(len(blob), (150,), generator=generator).tolist():
        damaged = bytearray(blob)
        damaged[position] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(damaged)
        try:
            net.load_task(path, name="damaged")
        except InputError:
            refused += 1
        else:
            assert torch.equal(evaluate(net, "damaged", x), expected)
            net.delete_task("damaged")
    assert refused > 140
    assert net.tasks() == ("a",)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(net: MaskedNetwork, path: Path, keep: float) -> None:
    blob = path.read_bytes()
    path.write_bytes(blob[: int(keep * len(blob)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"a\.safetensors is damaged"):
        net.load_task(path, name="b")


def _edit(path: Path, **changes: object) -> None:
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
    metadata["header"] = json.dumps(json.loads(metadata["header"]) | changes)
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(blob), metadata=metadata))


def _forge(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Change a file as someone would who computes the checksum anew."""
    header, tensors = read_task_file(path)
    change(header, tensors)
    header["checksum"] = checksum(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": task_header.FORMAT, "header": json.dumps(header)}))


HEAD = {"kind": "Conv2d", "options": describe_head(nn.Conv2d(8, 2, 1))["options"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm", 5),
        ("norm", ["own"]),
        ("method", []),
        ("method", {"name": ["piggyback"], "options": {}}),
        ("method", {"name": "piggyback", "options": {"threshold": "low"}}),
        ("method", {"name": "nothing", "options": {}}),
        ("method", {"name": "ksm", "options": {}}),
        ("head", None),
        ("head", {"kind": "Linear", "options": {"in_features": 10**12, "out_features": 10**12}}),
        ("head", {"kind": "Conv2d", "options": HEAD["options"] | {"out_channels": 10**12}}),
        ("head", {"kind": "Conv2d", "options": HEAD["options"] | {"groups": 0}}),
        ("head", {"kind": "Conv2d", "options": HEAD["options"] | {"kernel_size": [-1, 1]}}),
        ("head", {"kind": "Conv2d", "options": HEAD["options"] | {"in_channels": 10**40}}),
        ("head", {"kind": "Conv2d"}),
        ("head", {"kind": ["Conv2d"], "options": {}}),
        ("head", {"kind": "Sequential", "layers": [HEAD, HEAD]}),
        ("head", {"kind": "Sequential", "layers": 3}),
        ("task", 3),
        ("task", "../../etc/passwd"),
        ("task", ""),
        ("backbone_sha256", 7),
        ("densities", {"body.0.weight": "half"}),
        ("info", None),
        ("info", {"loss": float("nan")}),
        ("storage", {}),
        ("relative_to", {"task": "a"}),
        ("relative_to", {"task": "a", "sha256": "0"}),
        ("basis", {"name": "x", "sha256": "y"}),
        ("coded", {}),
        ("coded", {"mask/body.0.weight/mask": {"dtype": "bool", "shape": [10**15], "entropy_bits": 0.0}}),
        ("coded", {"mask/body.0.weight/mask": {"dtype": "bool", "shape": [-1], "entropy_bits": 0.0}}),
        ("coded", {"mask/body.0.weight/mask": {"dtype": "bool", "shape": [2**61, 2**61, 0], "entropy_bits": 0.0}}),
        ("coded", {"mask/nothing/mask": {"dtype": "bool", "shape": [1], "entropy_bits": 0.0}}),
        ("version", None),
        ("version", 1),
        ("version", "2"),
        ("unknown", 1),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_though_its_checksum_is_right(
    net: MaskedNetwork, path: Path, field: str, value: object
) -> None:
    _forge(path, lambda header, tensors: header.update({field: value}))
    before = net.hash_backbone()
    with pytest.raises(InputError):
        net.load_task(path, name=None if field == "task" else "b")
    assert net.tasks() == ("a",)
    assert net.hash_backbone() == before


def test_tensors_that_make_no_sense_are_refused_though_the_checksum_is_right(net: MaskedNetwork, path: Path) -> None:
    intact = path.read_bytes()
    coded = "mask/body.0.weight/mask"

    def many_parts(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for i in range(20):
            tensors[f"mask/body.0.weight/part{i}"] = tensors[coded].clone()
            header["coded"][f"mask/body.0.weight/part{i}"] = header["coded"][coded]

    changes: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
        "norm state: body.1.weight is torch.int64": lambda h, t: t.update({"norm/body.1.weight": torch.ones(8).long()}),
        "norm state: body.1.weight has shape": lambda h, t: t.update({"norm/body.1.weight": torch.ones(9)}),
        "norm state: .*missing": lambda h, t: t.pop("norm/body.1.bias"),
        "head: bias is torch.int32": lambda h, t: t.update({"head/bias": torch.ones(2).int()}),
        "head: .*missing": lambda h, t: t.update({"head/more": torch.ones(2)}),
        "unexpected tensor 'rest/x'": lambda h, t: t.update({"rest/x": torch.ones(2)}),
        "no masked weight here": lambda h, t: t.update({"mask/body.9.weight/mask": torch.ones(2)}),
        "expected the parts": lambda h, t: t.update({"mask/body.0.weight/more": torch.ones(2)}),
        "one part too many": many_parts,
        "coded tensor is damaged": lambda h, t: t.update({coded: t[coded][:-1]}),
        "got torch.float32 of shape": lambda h, t: t.update({coded: t[coded].float()}),
        "that its header lists": lambda h, t: t.pop(coded),
        "has .4096. elements": lambda h, t: h["coded"][coded].update(shape=[4096]),
        "part 'mask' is torch.bool": lambda h, t: h["coded"][coded].update(shape=[8 * 27]),
    }
    for message, change in changes.items():
        path.write_bytes(intact)
        _forge(path, change)
        with pytest.raises(InputError, match=message):
            net.load_task(path, name="b")
        assert net.tasks() == ("a",)


def test_uncoded_bools_of_odd_bytes_are_ones(net: MaskedNetwork, path: Path) -> None:
    def odd(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in list(header["coded"]):
            shape = header["coded"].pop(key)["shape"]
            tensors[key] = torch.full(shape, 7, dtype=torch.uint8).view(torch.bool)

    _forge(path, odd)
    bools = [t for t in read_task_file(path)[1].values() if t.dtype == torch.bool]
    assert {value for t in bools for value in t.view(torch.uint8).unique().tolist()} == {1}
    net.load_task(path, name="b")
    assert set(net.state("b").densities().values()) == {1.0}


def test_the_header_alone_is_read_without_the_tensors_and_a_cut_off_file_is_noticed(net: MaskedNetwork, path: Path) -> None:
    header, _ = read_task_file(path)
    assert read_header(path) == header
    blob = path.read_bytes()
    damaged = bytearray(blob)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert read_header(path) == header, "the tensors are not looked at"
    for content in (blob[:-1], blob + b"x", blob[:20], b"", struct.pack("<Q", 1 << 62) + blob[8:], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged or no task file"):
            read_header(path)


def test_overlong_headers_are_not_even_read(path: Path) -> None:
    _forge(path, lambda header, tensors: header.update(info={"x": "x" * file_header.MAX_HEADER}))
    with pytest.raises(InputError, match="are to be the header"):
        read_header(path)


def test_a_method_with_more_patterns_than_a_network_has_weights_is_refused(net: MaskedNetwork, path: Path) -> None:
    mixed = {"method": {"name": "piggyback"}, "own": ["*a*b*"] * 5000}
    _forge(path, lambda header, tensors: header.update(method={"name": "mixed", "options": mixed}))
    with pytest.raises(InputError, match="5000 entries"):
        net.load_task(path, name="b")


def test_headers_that_are_nested_without_end_or_no_json_are_refused(net: MaskedNetwork, path: Path) -> None:
    def write(text: str) -> None:
        metadata = json.dumps({"__metadata__": {"format": task_header.FORMAT, "header": text}}).encode()
        path.write_bytes(struct.pack("<Q", len(metadata)) + metadata)

    for text in ("[" * 100_000, '{"version": ' + "9" * 10_000 + "}", "{}", "[2]", '{"version": NaN}', "\ud800", ""):
        write(text)
        with pytest.raises(InputError):
            read_header(path)
        with pytest.raises(InputError):
            net.load_task(path, name="b")


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (float("nan"), "no plain JSON"),
        (object(), "no plain JSON"),
        (10**50, "no plain JSON"),
        (_nested(100_000), "no plain JSON"),
        ("x" * file_header.MAX_HEADER, "longer than"),
    ],
    ids=["nan", "object", "digits", "nested", "long"],
)
def test_info_that_no_header_can_hold_is_refused_when_it_is_saved(
    net: MaskedNetwork, path: Path, info: object, message: str
) -> None:
    intact = path.read_bytes()
    with pytest.raises(InputError, match=message):
        net.save_task("a", path, info={"x": info})
    assert path.read_bytes() == intact


def test_an_edited_header_is_refused(net: MaskedNetwork, path: Path) -> None:
    _edit(path, info={"mIoU": 1.0})
    with pytest.raises(InputError, match="was changed after it was written"):
        net.load_task(path, name="b")


def test_a_newer_format_says_to_upgrade(net: MaskedNetwork, path: Path) -> None:
    _edit(path, version=99)
    with pytest.raises(InputError, match=r"format version 99.*upgrade"):
        net.load_task(path, name="b")


def test_a_foreign_safetensors_file_and_a_missing_one_are_refused(net: MaskedNetwork, tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no img2img task"):
        net.load_task(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no task file"):
        net.load_task(tmp_path / "y.safetensors")


def test_a_name_that_is_taken_is_refused_and_a_new_one_is_not(net: MaskedNetwork, path: Path) -> None:
    with pytest.raises(InputError, match="already"):
        net.load_task(path)
    assert net.load_task(path, name="b") == "b"


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(8, 3, 3, padding=1, bias=False),
        nn.Linear(4, 2),
        nn.Sequential(
            nn.Conv2d(8, 3, (3, 1), padding=(1, 0)), nn.Upsample(scale_factor=4.0, mode="bilinear", align_corners=True)
        ),
        nn.Sequential(nn.ReflectionPad2d(4), nn.Conv2d(8, 3, 9)),
        nn.ConvTranspose2d(8, 3, 3, stride=2, groups=1, output_padding=1),
    ],
)
def test_a_known_head_is_rebuilt_from_its_description(module: nn.Module) -> None:
    rebuilt = build_head(json.loads(json.dumps(describe_head(module))))
    rebuilt.load_state_dict(module.state_dict())
    x = torch.randn(2, 4) if isinstance(module, nn.Linear) else torch.randn(2, 8, 6, 6)
    assert torch.equal(rebuilt(x), module(x))


class MyHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).tanh()


def test_a_head_of_the_users_own_class_is_passed_to_load_task(net: MaskedNetwork, tmp_path: Path) -> None:
    net.add_task("mine", masks.Piggyback(), head=MyHead())
    x = torch.randn(2, 3, 8, 8)
    expected = evaluate(net, "mine", x)
    path = net.save_task("mine", tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="'MyHead', which a file cannot rebuild"):
        net.load_task(path, name="again")
    with pytest.raises(InputError, match="head"):
        net.load_task(path, name="again", head=nn.Conv2d(8, 2, 1))
    net.load_task(path, name="again", head=MyHead())
    assert torch.equal(evaluate(net, "again", x), expected)


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


def test_a_tied_head_is_stored_once_and_without_what_is_not_persistent(net: MaskedNetwork, tmp_path: Path) -> None:
    net.add_task("tied", masks.Piggyback(), head=TiedHead())
    x = torch.randn(2, 3, 8, 8)
    path = net.save_task("tied", tmp_path / "tied.safetensors")
    assert {k for k in read_task_file(path)[1] if k.startswith("head/")} == {"head/one.weight", "head/one.bias", "head/two.bias"}
    net.load_task(path, name="again", head=TiedHead())
    assert torch.equal(evaluate(net, "again", x), evaluate(net, "tied", x))


def test_a_refused_file_leaves_the_head_that_was_passed_as_it_was(net: MaskedNetwork, tmp_path: Path) -> None:
    net.add_task("mine", masks.Piggyback(), head=MyHead())
    path = net.save_task("mine", tmp_path / "mine.safetensors")
    _forge(path, lambda header, tensors: header["method"]["options"].update(granularity="kernel"))
    mine = MyHead()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    with pytest.raises(InputError, match="part 'mask'"):
        net.load_task(path, name="again", head=mine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_an_unknown_method_or_option_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"known: .*identity.*piggyback"):
        build_method("piggy", {})
    with pytest.raises(InputError, match="its options are"):
        build_method("piggyback", {"treshold": 1})


def test_a_refused_save_keeps_the_info_as_it_was(net: MaskedNetwork, tmp_path: Path) -> None:
    net.save_task("a", tmp_path / "a.safetensors", info={"mIoU": 0.5})
    with pytest.raises(InputError, match="no plain JSON"):
        net.save_task("a", tmp_path / "b.safetensors", info={"mIoU": float("nan")})
    assert net.state("a").info == {"mIoU": 0.5}
    assert not (tmp_path / "b.safetensors").exists()
