"""Sizes of tasks as the papers count them."""

import pytest
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.masks.parameter_count import relative_parameters, task_bits


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
