"""LeNet-300-100 against the sums that it is."""

import pytest
import torch

from img2img.backbones.lenet import LeNet
from img2img.errors import InputError


@torch.no_grad()
def test_it_is_three_matrices_with_relu_between() -> None:
    net = LeNet(out_channels=10)
    weights = [(layer.weight, layer.bias) for layer in (net.trunk.fc1, net.trunk.fc2, net.head)]
    assert [tuple(w.shape) for w, _ in weights] == [(300, 784), (100, 300), (10, 100)]
    assert sum(p.numel() for p in net.parameters()) == 266_610
    x = torch.rand(5, 1, 28, 28)
    y = ((x - 0.1307) / 0.3081).flatten(1)
    for w, b in weights[:2]:
        y = (y @ w.T + b).clamp(min=0)
    torch.testing.assert_close(net(x), y @ weights[2][0].T + weights[2][1])


@torch.no_grad()
def test_colours_count_by_their_mean() -> None:
    net = LeNet(out_channels=10)
    grey, colour = torch.rand(2, 1, 28, 28), torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(net(grey.repeat(1, 3, 1, 1)), net(grey))
    torch.testing.assert_close(net(colour), net(colour.mean(1, keepdim=True)))


def test_without_hidden_layers_it_is_a_linear_classifier() -> None:
    net = LeNet(out_channels=3, in_pixels=16, hidden=[])
    assert net.head_channels == 16
    assert net(torch.rand(2, 3, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("size", [(32, 32), (28, 29)])
def test_a_image_of_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"got images of {size[0]} x {size[1]}.*exactly 28 x 28"):
        LeNet(out_channels=10)(torch.rand(1, 1, *size))
