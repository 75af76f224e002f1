"""Mixed training: weights of the task's own beside masked ones."""

from pathlib import Path

import pytest
import torch
from mask_zoo import WithHead, evaluate, head, train

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
    torch.optim.SGD([mask.weight], lr).step()
    torch.optim.SGD([plain.get_parameter("body.3.weight")], lr).step()
    weights = net.masked_weights()
    assert torch.equal(mask(weights["body.3.weight"]), plain.get_parameter("body.3.weight"))
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


def test_its_file_holds_the_weights_in_half_precision_and_says_so(net: MaskedNetwork, tmp_path: Path) -> None:
    train(net, "mixed", torch.randn(4, 3, 8, 8))
    path = net.save_task("mixed", tmp_path / "mixed.safetensors")
    row = next(row for row in storage_table(path) if row["weight"] == "body.3.weight")
    assert (row["part"], row["bytes"], row["coder"]) == ("weight", 8 * 8 * 9 * 2, "raw")


def test_freezing_rounds_its_weights_once_to_half_precision(net: MaskedNetwork) -> None:
    train(net, "mixed", torch.randn(4, 3, 8, 8))
    mask = dict(net.state("mixed").named_masks())["body.3.weight"]
    assert isinstance(mask, masks.TrainableCopy)
    mask.weight.data.view(-1)[:2] = torch.tensor([1e6, -1e6])
    trained = mask.weight.detach().clone()
    net.freeze_task("mixed")
    rounded = mask(net.masked_weights()["body.3.weight"])
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded.view(-1)[:2], torch.tensor([65504.0, -65504.0])), "beyond the range: its end, not infinity"
    assert torch.equal(rounded.view(-1)[2:], torch.from_numpy(trained.view(-1)[2:].numpy().astype("float16").astype("float32")))
    mask.freeze()
    assert torch.equal(mask(net.masked_weights()["body.3.weight"]), rounded)


def test_a_warm_start_takes_over_own_weights(net: MaskedNetwork) -> None:
    train(net, "mixed", torch.randn(4, 3, 8, 8))
    net.freeze_task("mixed")
    net.add_task("warm", masks.Mixed(method=masks.Affine(), trainable_copies=COPIES), head=head(), start_from="mixed")
    theirs, mine = (dict(net.state(task).named_masks())["body.3.weight"] for task in ("mixed", "warm"))
    assert torch.equal(theirs.weight.float(), mine.weight)  # type: ignore[operator, arg-type]
    assert mine.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert mine.weight.requires_grad  # type: ignore[union-attr]
    assert not theirs.weight.requires_grad  # type: ignore[union-attr]


def test_the_penalty_and_basis_are_the_inner_methods() -> None:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.4, seed=0))
    method = masks.Mixed(method=masks.ImpressLearn(basis="random", penalty_weight=2.0), trainable_copies=COPIES)
    state = net.add_task("mixed", method, head=head())
    for _, mask in state.named_masks():
        for name, parameter in mask.named_parameters():
            if name != "weight":
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


def test_a_file_with_a_weight_that_is_no_number_is_refused(net: MaskedNetwork, tmp_path: Path) -> None:
    state = net.state("mixed")
    dict(state.named_masks())["body.3.weight"].weight.data[0] = float("nan")  # type: ignore[union-attr, index]
    path = net.save_task("mixed", tmp_path / "mixed.safetensors")
    with pytest.raises(InputError, match="no finite numbers"):
        MaskedNetwork(net.copy_backbone(head()), head="head").load_task(path)
