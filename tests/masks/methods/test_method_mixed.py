"""Mixed training: weights of the task's own beside masked ones."""

from pathlib import Path

import pytest
import torch
from mask_zoo import WithHead, evaluate, head, train
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.storage import storage_table

COPIES = ["body.3.*"]


@pytest.fixture
def net() -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("mixed", masks.Mixed(method=masks.Piggyback(init=6e-3), trainable_copies=COPIES), head=head())
    return net


def test_it_starts_at_the_backbone_and_learns_its_weights_as_a_network_of_its_own_would(net: MaskedNetwork) -> None:
    x, lr = torch.randn(4, 3, 8, 8), 0.1
    state = net.state("mixed")
    plain = net.merge("mixed", requires_grad=True).train()
    assert torch.equal(plain.eval()(x), evaluate(net, "mixed", x))
    plain.train()
    net.train()
    mask = dict(state.named_masks())["body.3.weight"]
    assert isinstance(mask, masks.TrainableCopy)
    net(x, task="mixed").square().mean().backward()
    plain(x).square().mean().backward()
    torch.optim.SGD([mask.delta], lr).step()
    torch.optim.SGD([plain.get_parameter("body.3.weight")], lr).step()
    weights = net.masked_weights()
    torch.testing.assert_close(mask(weights["body.3.weight"]), plain.get_parameter("body.3.weight"), rtol=1e-6, atol=1e-8)
    assert not torch.equal(mask(weights["body.3.weight"]), weights["body.3.weight"])
    assert net.hash_backbone() == net.backbone_sha256


def test_the_others_are_masked_as_the_inner_method_does() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = MaskedNetwork(WithHead(), head="head", select=["body.0.*", "body.3.*"])
    net.add_task("mixed", masks.Mixed(method={"name": "piggyback", "init": 6e-3}, trainable_copies=COPIES), head=head())
    net.add_task("plain", masks.Piggyback(init=6e-3), head=head())
    score = dict(net.state("mixed").named_masks())["body.0.weight"]
    other = dict(net.state("plain").named_masks())["body.0.weight"]
    assert type(score) is type(other)
    net.state("plain").head.load_state_dict(net.state("mixed").head.state_dict())  # type: ignore[union-attr]
    for task in ("mixed", "plain"):
        net.train()
        net(x, task=task).square().mean().backward()
    assert torch.equal(score.score.grad, other.score.grad)  # type: ignore[union-attr, operator]
    assert net.state("mixed").densities().keys() == {"body.0.weight"}


def test_its_file_holds_the_changes_at_the_entropy_of_eight_bits(net: MaskedNetwork, tmp_path: Path) -> None:
    train(net, "mixed", torch.randn(4, 3, 8, 8))
    path = net.save_task("mixed", tmp_path / "mixed.safetensors")
    rows = {row["part"]: row for row in storage_table(path) if row["weight"] == "body.3.weight"}
    code, step = rows["code"], rows["step"]
    assert (step["bytes"], step["coder"], code["weights"]) == (8 * 4, "raw", 8 * 8 * 9)
    assert code["entropy_per_weight"] <= 8
    assert code["bytes"] <= 8 * 8 * 9 + 1


def test_a_copy_at_its_entropy_takes_less_than_a_byte_a_weight(tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Conv2d(16, 64, 3, bias=False), nn.Conv2d(64, 16, 1))
    net = MaskedNetwork(backbone)
    state = net.add_task("mixed", masks.Mixed(method=masks.Piggyback(), trainable_copies=["0.*"]))
    mask = dict(state.named_masks())["0.weight"]
    assert isinstance(mask, masks.TrainableCopy)
    mask.delta.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(torch.logspace(-5, 5, 64).view(-1, 1, 1, 1))
    table = storage_table(net.save_task("mixed", tmp_path / "t"))
    code = next(row for row in table if row["weight"] == "0.weight" and row["part"] == "code")
    assert 7 < code["entropy_per_weight"] < 7.5, "normal values in steps of 1 / 48 of their deviation: log2(48 * 4.13) = 7.6"
    assert code["entropy_per_weight"] < code["bits_per_weight"] < 7.8, "the counts of 255 values among them"
    loaded = MaskedNetwork(net.copy_backbone())
    loaded.load_task(tmp_path / "t")
    assert torch.equal(loaded.merge("mixed").get_parameter("0.weight"), net.merge("mixed").get_parameter("0.weight"))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ConvTranspose2d(6, 8, 3),
        nn.ConvTranspose2d(6, 8, 3, groups=2),
        nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        nn.Linear(6, 8),
        nn.Embedding(6, 8),
    ],
    ids=str,
)
def test_freezing_rounds_each_channel_once_to_eight_bits(layer: nn.Module) -> None:
    net = MaskedNetwork(nn.Sequential(layer, nn.Identity()))
    state = net.add_task("mixed", masks.Mixed(method=masks.Piggyback(), trainable_copies=["0.*"]))
    mask, weight = dict(state.named_masks())["0.weight"], net.masked_weights()["0.weight"]
    assert isinstance(mask, masks.TrainableCopy)
    delta = mask.delta.data
    axis = 1 if isinstance(layer, nn.ConvTranspose2d | nn.Embedding) else 0
    sizes = torch.logspace(-30, 30, delta.shape[axis]).view(*[1] * axis, -1, *[1] * (delta.ndim - axis - 1))
    delta.copy_(torch.randn(delta.shape, generator=torch.Generator().manual_seed(0)) * sizes)
    delta.select(axis, 1).zero_()
    trained = delta.clone()
    assert torch.equal(mask(weight), weight + trained)
    net.freeze_task("mixed")
    rounded = mask(weight)
    assert rounded.stride() == weight.stride()
    by_channel = net.layers()["0.weight"].as_matrix
    steps = by_channel(trained).abs().amax(1, keepdim=True) / 127
    codes = torch.from_numpy(by_channel(trained).numpy() / steps.clamp_min(1e-45).numpy()).round()
    assert codes.abs().max() == 127
    torch.testing.assert_close(by_channel(rounded), by_channel(weight) + codes * steps, rtol=1e-6, atol=0)
    mask.freeze()
    assert torch.equal(mask(weight), rounded)


def _copied(share: float) -> list[str]:
    layers = [nn.Linear(4, 2), nn.Linear(2, 20), nn.Linear(20, 2), nn.Linear(2, 4)]  # of 8, 40, 40 and 8 weights
    net = MaskedNetwork(nn.Sequential(*layers))
    state = net.add_task("mixed", masks.Mixed(method=masks.Piggyback(), trainable_copies=share))
    return [name for name, mask in state.named_masks() if isinstance(mask, masks.TrainableCopy)]


def test_a_share_copies_the_smallest_weights_and_the_last_of_equal_ones_first() -> None:
    assert _copied(0.08) == []
    assert _copied(0.09) == ["3.weight"]
    assert _copied(0.5) == ["0.weight", "3.weight"]
    assert _copied(0.6) == ["0.weight", "2.weight", "3.weight"]


def test_a_share_is_stored_with_the_task(tmp_path: Path) -> None:
    net = MaskedNetwork(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 20)))
    state = net.add_task("mixed", masks.Mixed(method=masks.Piggyback(), trainable_copies=0.5))
    loaded = MaskedNetwork(net.copy_backbone())
    loaded.load_task(net.save_task("mixed", tmp_path / "mixed"))
    kinds = [type(mask).__name__ for _, mask in loaded.state("mixed").named_masks()]
    assert kinds == [type(mask).__name__ for _, mask in state.named_masks()] == ["TrainableCopy", "PiggybackMask"]


def test_a_warm_start_takes_over_own_weights(net: MaskedNetwork) -> None:
    train(net, "mixed", torch.randn(4, 3, 8, 8))
    net.freeze_task("mixed")
    net.add_task("warm", masks.Mixed(method=masks.Affine(), trainable_copies=COPIES), head=head(), start_from="mixed")
    theirs, mine = (dict(net.state(task).named_masks())["body.3.weight"] for task in ("mixed", "warm"))
    weight = net.masked_weights()["body.3.weight"]
    assert torch.equal(theirs(weight), mine(weight))
    assert not torch.equal(mine(weight), weight)
    assert [(n, p.dtype, p.requires_grad) for n, p in mine.named_parameters()] == [("delta", torch.float32, True)]
    assert not any(p.requires_grad for p in theirs.parameters())


def test_a_copy_of_an_earlier_version_keeps_its_form(tmp_path: Path) -> None:
    net = MaskedNetwork(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    method = masks.Mixed(method=masks.Piggyback(), trainable_copies=["0.*"])
    layers, old = net.layers(), torch.randn(4, 4).half()
    mask = method.restore({"0.weight": {"weight": old}}, {"0.weight": layers["0.weight"]}, {})["0.weight"]
    weight = net.masked_weights()["0.weight"]
    assert torch.equal(mask(weight), old.float())
    assert mask.stored().keys() == {"weight"}
    warm = method.create({"0.weight": layers["0.weight"]}, {})["0.weight"]
    warm.start_from(mask)
    assert torch.equal(warm(weight), old.float())
    warm.get_parameter("weight").data[0] = torch.tensor([1e6, -1e6, 0.1, 0])
    warm.freeze()
    assert torch.equal(warm(weight)[0], torch.tensor([65504.0, -65504.0, 0.1, 0]).half().float()), "its end, not infinity"


def test_the_penalty_and_basis_are_the_inner_methods() -> None:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.4, seed=0))
    method = masks.Mixed(method=masks.ImpressLearn(basis="random", penalty_weight=2.0), trainable_copies=COPIES)
    state = net.add_task("mixed", method, head=head())
    for _, mask in state.named_masks():
        for name, parameter in mask.named_parameters():
            if name != "delta":
                parameter.data.fill_(1.0)
    assert method.basis_name() == "random"
    penalty = state.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(2.0 * (3 - 1) ** 2), "λ (Σ|α| - 1)² of the one masked layer"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trainable_copies": []}, "one or more"),
        ({"trainable_copies": "body.*"}, "a list of patterns"),
        ({"trainable_copies": 1.0}, "between 0 and 1"),
        ({"trainable_copies": True}, "between 0 and 1"),
        ({"trainable_copies": ["body.9.*"]}, "body.9.*"),
        ({"method": {"name": "mixed", "method": {"name": "affine"}, "trainable_copies": COPIES}}, "mixed of mixed"),
        ({"method": {"name": "nothing"}}, "unknown"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], says: str) -> None:
    net = MaskedNetwork(WithHead(), head="head")
    with pytest.raises(InputError, match=says):
        net.add_task("mixed", masks.Mixed(**({"method": {"name": "affine"}, "trainable_copies": COPIES} | options)), head=head())  # type: ignore[arg-type]
    assert net.tasks() == ()


def test_a_file_with_a_weight_that_is_no_number_is_refused(
    net: MaskedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = net.state("mixed")
    monkeypatch.setattr("img2img.masks.task_state.all_finite", lambda tensors: True)  # as one that others have written
    dict(state.named_masks())["body.3.weight"].delta.data[0] = float("nan")  # type: ignore[union-attr, index]
    path = net.save_task("mixed", tmp_path / "mixed.safetensors")
    with pytest.raises(InputError, match="no finite numbers"):
        MaskedNetwork(net.copy_backbone(head()), head="head").load_task(path)
