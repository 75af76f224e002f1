"""What can be masked, what is refused and named, and sizes of tasks as the papers count them."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils as old_style
from mask_zoo import Tied, WithHead, evaluate, head, train
from torch import nn
from torch.nn.utils import parametrizations, prune

from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.masks.analysis import relative_parameters, task_bits

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def first(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A network of two convolutions, the first of them changed."""
    return nn.Sequential(change(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def with_weight(layer: nn.Module, weight: torch.Tensor, *, buffer: bool = False) -> nn.Module:
    """The layer with a weight of another kind."""
    del layer.weight
    if buffer:
        layer.register_buffer("weight", weight)
    else:
        layer.weight = weight
    return nn.Sequential(layer, nn.Linear(4, 4))


def fixed(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


class Aliased(nn.Module):
    """A weight that is tied by a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.alias = [self.layer.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ self.alias[0]


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 3, 1)), {nn.Linear})


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "spectral_norm": (lambda: first(parametrizations.spectral_norm), r"0\.weight is parametrised by SpectralNorm.*remove_param"),
    "weight_norm": (lambda: first(parametrizations.weight_norm), r"0\.weight is parametrised by WeightNorm.*remove_param"),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4))), r"0\.weight is parametrised by Ortho"),
    "attention": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight")),
        r"0\.in_proj_weight is parametrised",
    ),
    "old weight_norm": (lambda: first(old_style.weight_norm), r"0\.weight .*\(weight_norm\).*remove_weight_norm"),
    "old spectral_norm": (lambda: first(old_style.spectral_norm), r"0\.weight .*\(spectral_norm\).*remove_spectral_norm"),
    "pruned": (lambda: first(lambda c: prune.random_unstructured(c, "weight", 0.5)), r"0\.weight .*\(pruning\).*prune\.remove"),
    "out of sight": (lambda: Aliased(), r"alias of the backbone holds layer\.weight a second time.*give the module itself"),
    "lazy": (lambda: first(lambda c: nn.LazyConv2d(8, 3)), r"0\.weight .*lazy.*run the backbone once"),
    "lazy norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d()), r"1\.weight .*lazy"),
    "meta": (lambda: first(lambda c: c.to("meta")), r"0\.weight .*no values.*load its weights"),
    "int8": (lambda: with_weight(nn.Linear(4, 4), fixed(torch.ones(4, 4, dtype=torch.int8))), r"0\.weight is of torch\.int8"),
    "complex": (lambda: nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), r"0\.weight is of torch\.complex64"),
    "float8": (lambda: with_weight(nn.Linear(4, 4), fixed(torch.ones(4, 4).to(torch.float8_e4m3fn))), r"0\.weight .*float8"),
    "sparse": (lambda: with_weight(nn.Linear(4, 4), fixed(torch.ones(4, 4).to_sparse())), r"0\.weight .*layout.*to_dense"),
    "buffer": (lambda: with_weight(nn.Linear(4, 4), torch.ones(4, 4), buffer=True), r"0\.weight is a buffer and no parameter"),
    "attribute": (lambda: with_weight(nn.Linear(4, 4), torch.ones(4, 4)), r"0\.weight is an attribute and no parameter"),
    "result": (lambda: with_weight(nn.Linear(4, 4), torch.ones(4, 4, requires_grad=True) * 2), r"0\.weight .*gradient history"),
    "quantised": (quantised, r"0\.weight is quantised"),
    "scripted": (lambda: first(torch.jit.script), r"0 of the backbone is compiled by torch\.jit"),
    "with a lock": (lambda: first(lambda c: setattr(c, "lock", threading.Lock()) or c), r"cannot be copied \(.*lock"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_no_mask_could_act_on_are_named_and_refused_with_the_remedy(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        MaskedNetwork(make())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm"])
def test_parametrised_weights_may_be_made_plain_left_out_or_masked_in_their_originals(kind: str) -> None:
    backbone = first(getattr(parametrizations, kind)).eval()
    with pytest.raises(InputError, match="parametrised"):
        MaskedNetwork(backbone, select=["0.*", "3.*"])
    outputs = {}
    for name, select in (("left out", "3.*"), ("original", lambda name, module, p: ".original" in name and p.ndim == 4)):
        net = MaskedNetwork(backbone, select=select)  # type: ignore[arg-type]
        net.add_task("a", masks.Piggyback(start="uniform"))
        train(net, "a", X)
        net.freeze_task("a")
        outputs[name] = evaluate(net, "a", X)
        assert torch.equal(net.merge("a")(X), outputs[name])
        assert net.hash_backbone() == net.backbone_sha256
    nn.utils.parametrize.remove_parametrizations(backbone[0], "weight")
    assert MaskedNetwork(backbone).roles.masked == ("0.weight", "3.weight")


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("encodr.*", r"'encodr.*no weight.*body\.0.*body\.3"),
        (["body.0.*", "body.7.weight"], r"'body\.7\.weight' fits no weight"),
        (["body.0.weight", nn.Conv3d], r"Conv3d fits no weight .*no such layer"),
        ("body.1.*", r"body\.1\.weight.*function"),
        ("body.0.bias", r"body\.0\.bias.*function"),
        (["body.*", "head.*"], r"'head' is the head"),
        (lambda name, module, p: False, r"nothing to mask: select=.* picks none"),
    ],
)
def test_a_selection_of_which_a_part_fits_nothing_is_refused(select: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskedNetwork(WithHead(), head="head", select=select)  # type: ignore[arg-type]
    relaxed = MaskedNetwork(WithHead(), head="head", select=select, strict=False)  # type: ignore[arg-type]
    assert set(relaxed.roles.masked) <= {"body.0.weight", "body.3.weight"}


def test_a_pattern_for_the_second_name_of_a_tied_weight_is_told_the_first() -> None:
    with pytest.raises(InputError, match=r"output\.weight .*embedding\.weight"):
        MaskedNetwork(Tied(), select=["embedding.*", "output.*"])


@pytest.mark.parametrize("backbone", [nn.Identity(), nn.BatchNorm2d(3), nn.LSTM(3, 4)], ids=lambda m: type(m).__name__)
def test_a_network_of_which_nothing_can_be_masked_is_refused(backbone: nn.Module) -> None:
    with pytest.raises(InputError, match="nothing to mask"):
        MaskedNetwork(backbone)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_changes_with_every_call_is_refused(kind: type[nn.Module]) -> None:
    for given in ((4, 2), (4, 2, None)):
        MaskedNetwork(nn.Sequential(kind(*given), nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"^0 of the backbone has max_norm=0\.5.*set max_norm to None"):
        MaskedNetwork(nn.Sequential(kind(4, 2, max_norm=0.5), nn.Linear(2, 2)))


class _Counting(nn.Module):
    """Writes into its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.scale.mul_(2)
        return x @ self.weight * self.scale


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("method", [masks.Piggyback(), masks.Affine(), masks.KSM(), masks.LoRA(), masks.SparseSigns()], ids=str)
def test_a_sparse_embedding_is_trained_by_masks_as_a_dense_one(kind: type[nn.Module], method: masks.MaskMethod) -> None:
    """Its gradient is that of a frozen weight, and what masks learn is dense; the caller's own module stays sparse."""
    torch.manual_seed(0)
    sparse, dense = (nn.Sequential(kind(9, 4, sparse=flag)) for flag in (True, False))
    dense.load_state_dict(sparse.state_dict())
    given = torch.tensor([[1, 2, 8], [3, 1, 0]])
    trained = []
    for network in (sparse, dense):
        torch.manual_seed(1)
        net = MaskedNetwork(network)
        state = net.add_task("a", method)
        optimiser = torch.optim.Adam(state.parameters(), lr=0.01)
        for _ in range(3):
            optimiser.zero_grad()
            net(given, task="a").square().sum().backward()
            optimiser.step()
        trained.append([p.detach().clone() for p in state.parameters()])
    assert sparse[0].sparse  # type: ignore[union-attr]
    assert trained[0]
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b)


def test_a_layer_that_writes_into_the_backbone_is_found() -> None:
    network = MaskedNetwork(nn.Sequential(_Counting()), select=lambda name, module, parameter: name == "0.weight")
    network.add_task("a", masks.Piggyback())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="wrote into its weights"):
            network(torch.ones(1, 2), task="a")


def test_a_recurrent_layers_weights_are_masked_when_a_function_selects_them() -> None:
    """Its calls read a list of its own, and not its parameters."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    plain, x = Last().requires_grad_(False), torch.randn(2, 5, 3)
    net = MaskedNetwork(plain, select=lambda name, module, p: name.startswith("rnn.weight"))
    net.add_task("a", masks.Piggyback(start="uniform"))
    output = net(x, task="a")
    output.sum().backward()
    assert all(p.grad is not None for p in net.state("a").parameters())
    for name, mask in net.state("a").binaries().items():
        plain.get_parameter(name).mul_(mask)
    assert torch.allclose(plain(x), output)
    with torch.no_grad():
        assert torch.equal(net.merge("a")(x), evaluate(net, "a", x))


def test_own_patterns_that_fit_nothing_are_refused() -> None:
    net = MaskedNetwork(WithHead(), head="head")
    with pytest.raises(InputError, match=r"trainable_copies='bodi\.\*' fits no weight"):
        net.add_task("a", masks.Mixed(method=masks.Piggyback(), trainable_copies=["body.0.*", "bodi.*"]), head=head())
    assert net.tasks() == ()


def _network() -> MaskedNetwork:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3))
    return MaskedNetwork(body)


# 108 and 288 weights, of 12 and 32 kernels; 8 norm parameters; 8 biases
@pytest.mark.parametrize(
    ("method", "norm", "bits"),
    [
        (masks.Piggyback(), "frozen", 396),
        (masks.Piggyback(), "statistics", 396),
        (masks.Piggyback(), "own", 396 + 32 * 8),
        (masks.Piggyback(granularity="kernel"), "frozen", 44),
        (masks.Piggyback(ternary=True), "frozen", 396 + 396),  # none is zero at the start, so each has a sign
        (masks.KSM(), "frozen", 44 + 2 * 2 * 32),  # no soft value yet; the range of each layer's
        (masks.Identity(), "own", 32 * 8),
    ],
)
def test_bits_are_counted_by_hand(method: masks.MaskMethod, norm: str, bits: int) -> None:
    network = _network()
    network.add_task("a", method, norm=norm)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="still in training"):
        task_bits(network.state("a"))
    network.freeze_task("a")
    assert task_bits(network.state("a")) == bits
    assert relative_parameters(network) == 1 + bits / (32 * (396 + 8 + 8))


def test_affine_masks_add_their_scales() -> None:
    network = _network()
    network.add_task("a", masks.Affine(), norm="frozen")
    network.freeze_task("a")
    # the first layer stands before a normalisation, so its k0 is 1 and three numbers are learned; all four are kept
    assert task_bits(network.state("a")) - 396 in (32 * 7, 32 * 8)


@pytest.mark.parametrize(("norm", "published"), [("frozen", 1.16), ("own", 1.17)])
def test_five_tasks_on_a_resnet_50_are_as_large_as_published(norm: str, published: float) -> None:
    # Affine paper, table 1: Piggyback 1.16, with its own BatchNorm parameters 1.17
    backbone = build_backbone({"kind": "torchvision", "name": "resnet50", "out_channels": 1})
    network = MaskedNetwork(backbone, head="head")
    network.add_task("cubs", masks.Piggyback(), head=nn.Identity(), norm=norm)  # type: ignore[arg-type]
    network.freeze_task("cubs")
    assert round(1 + 5 * (relative_parameters(network) - 1), 2) == published


def test_nine_tasks_on_the_decathlons_network_are_as_large_as_published() -> None:
    backbone = build_backbone({"kind": "wide_resnet", "out_channels": 1})
    network = MaskedNetwork(backbone, head="head")
    network.add_task("dtd", masks.Piggyback(), head=nn.Identity(), norm="frozen")
    network.freeze_task("dtd")
    assert 1 + 9 * (relative_parameters(network) - 1) == pytest.approx(41 / 32, abs=0.005)


def test_a_single_number_cannot_be_masked() -> None:
    backbone = nn.Sequential(nn.Linear(4, 4))
    backbone.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(InputError, match=r"temperature .*single number.*leave it out"):
        MaskedNetwork(backbone, select=lambda name, module, parameter: True)
