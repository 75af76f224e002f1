import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from img2img.backbones.transformer import ImageTransformer
from img2img.errors import InputError


def plain_transformer(x: Tensor, w: dict[str, Tensor], blocks: int) -> Tensor:
    """The network of Johnson et al. written out, in training mode with batch statistics."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True)

    def conv(x: Tensor, name: str, pad: int, stride: int = 1) -> Tensor:
        x = F.conv2d(F.pad(x, (pad,) * 4, mode="reflect"), w[f"{name}.0.weight"], stride=stride)
        return norm(x, f"{name}.1")

    x = (x - 0.5) / 0.5
    x = conv(x, "encoder.0", 4).relu()
    x = conv(x, "encoder.1", 1, stride=2).relu()
    x = conv(x, "encoder.2", 1, stride=2).relu()
    for i in range(blocks):
        x = x + conv(conv(x, f"encoder.{3 + i}.conv1", 1).relu(), f"encoder.{3 + i}.conv2", 1)
    for i in range(2):
        x = F.conv_transpose2d(x, w[f"decoder.{i}.0.weight"], stride=2, padding=1, output_padding=1)
        x = norm(x, f"decoder.{i}.1").relu()
    return F.conv2d(F.pad(x, (4,) * 4, mode="reflect"), w["head.weight"], w["head.bias"])


def test_it_computes_the_papers_network() -> None:
    net = ImageTransformer(out_channels=3, width=4, blocks=2)
    for p in net.parameters():
        nn.init.normal_(p, 0.1, 0.3)
    x = torch.rand(2, 3, 16, 20)
    torch.testing.assert_close(net(x), plain_transformer(x, net.state_dict(), 2))


@pytest.mark.parametrize(("options", "millions"), [({}, 1.68), ({"width": 80, "blocks": 7}, 14.1)])
def test_its_size_is_the_papers_and_the_posters(options, millions) -> None:
    with torch.device("meta"):
        net = ImageTransformer(out_channels=3, **options)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_it_goes_up_by_transposed_convolutions_and_keeps_the_images_size() -> None:
    net = ImageTransformer(out_channels=5, width=4, blocks=1)
    assert [type(m) for m in net.decoder.modules() if hasattr(m, "stride")] == [nn.ConvTranspose2d] * 2
    assert net(torch.rand(1, 3, 8, 12)).shape == (1, 5, 8, 12)
    assert (net.stride, net.min_size, net.head_channels) == (4, 8, 4)
    assert net.make_head(2)(torch.rand(1, 4, 8, 8)).shape == (1, 2, 8, 8)


def test_instance_normalisation_looks_at_one_image_alone() -> None:
    x = torch.rand(2, 3, 8, 8)
    net = ImageTransformer(out_channels=1, width=4, blocks=1, norm="instance")
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
    batch = ImageTransformer(out_channels=1, width=4, blocks=1, norm="batch")
    assert (batch(x)[:1] - batch(x[:1])).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_fresh_network_neither_dies_nor_explodes(norm) -> None:
    y = ImageTransformer(out_channels=3, width=8, norm=norm)(torch.rand(4, 3, 32, 32))
    assert 0.1 < y.std() < 10


def test_weights_of_an_earlier_training_come_from_a_file(tmp_path) -> None:
    first = ImageTransformer(out_channels=7, width=4, blocks=1)
    save_file(first.state_dict(), tmp_path / "first.safetensors")
    second = ImageTransformer(out_channels=2, width=4, blocks=1, weights=tmp_path / "first.safetensors")
    for part in ("encoder", "decoder"):
        for name, tensor in getattr(first, part).state_dict().items():
            assert torch.equal(tensor, getattr(second, part).state_dict()[name])
    with pytest.raises(InputError, match="shape"):
        ImageTransformer(out_channels=2, width=8, blocks=1, weights=tmp_path / "first.safetensors")


def test_it_compiles_to_one_graph() -> None:
    net, x = ImageTransformer(out_channels=3, width=4, blocks=1).eval(), torch.rand(1, 3, 16, 16)
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"blocks": -1}, {"head_kernel": 4}, {"norm": "layer"}, {"weights": "imagenet"}]
)
def test_wrong_options_are_refused(options) -> None:
    with pytest.raises(InputError):
        ImageTransformer(out_channels=3, **options)
