import pytest
import torch
from torch import nn

from img2img.backbones.encoder_decoder import EncoderDecoder, HeadShape
from img2img.errors import InputError
from img2img.masks.heads import build_head, describe_head


class InPlaceEncoder(nn.Module):
    """Overwrites its input, as an encoder that starts with an in-place activation does."""

    def forward(self, x):
        return x.relu_()


def network(shape: HeadShape | None = None, **options) -> EncoderDecoder:
    defaults = {"out_channels": 2, "stride": 8, "min_size": 16, "spec": {}, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)}
    return EncoderDecoder(InPlaceEncoder(), nn.Conv2d(3, 4, 1), shape or HeadShape(4, 3), **(defaults | options))


def test_the_forward_pass_is_head_of_decoder_of_encoder_of_the_normalised_image() -> None:
    net = network()
    x = torch.rand(2, 3, 16, 24)
    normal = torch.stack([(x[:, i] - m) / s for i, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)])], 1)
    assert torch.equal(net(x), net.head(net.decoder(normal.relu())))
    net.head = nn.Identity()
    assert torch.equal(net(x), net.decoder(normal.relu()))


def test_an_encoder_that_works_in_place_leaves_the_callers_image_alone() -> None:
    x = torch.rand(1, 3, 16, 16)
    before = x.clone()
    network(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(x)
    assert torch.equal(x, before)


def test_a_grey_image_counts_as_three_equal_channels() -> None:
    net, grey = network(), torch.rand(2, 1, 16, 16)
    assert torch.equal(net(grey), net(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("size", "advice"), [((17, 32), "24 x 32"), ((16, 31), "16 x 32"), ((33, 9), "40 x 16"), ((8, 16), "16 x 16")]
)
def test_a_image_of_a_wrong_size_is_refused_with_the_size_to_pad_to(size, advice) -> None:
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]}.*multiples of 8, at least 16.*to {advice}"):
        network()(torch.rand(1, 3, *size))


@pytest.mark.parametrize("x", [torch.rand(3, 16, 16), torch.rand(1, 2, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)])
def test_a_batch_of_another_form_is_refused(x) -> None:
    with pytest.raises(InputError, match=r"expected \(N, 3, H, W\)"):
        network()(x)


def test_a_spec_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="plain values"):
        network(spec={"options": {"layer": nn.ReLU}})


SHAPES = [HeadShape(4, 3), HeadShape(4, 1, upsampling=4), HeadShape(4, 9, padding_mode="reflect")]


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_are_plain_classes_that_a_task_file_can_rebuild(shape) -> None:
    net = network(shape)
    head = net.make_head(5)
    assert head is not net.head
    again = build_head(describe_head(head))
    again.load_state_dict(head.state_dict())
    x = torch.rand(1, net.head_channels, 8, 8)
    assert torch.equal(again(x), head(x))
    assert head(x).shape == (1, 5, 8 * shape.upsampling, 8 * shape.upsampling)


@pytest.mark.parametrize(("kernel", "upsampling"), [(1, 1), (3, 1), (1, 4), (3, 8)])
def test_a_head_starts_and_computes_as_smps_segmentation_head_does(kernel, upsampling) -> None:
    from segmentation_models_pytorch.base.heads import SegmentationHead
    from segmentation_models_pytorch.base.initialization import initialize_head

    torch.manual_seed(5)
    reference = SegmentationHead(6, 3, kernel_size=kernel, upsampling=upsampling)
    initialize_head(reference)
    torch.manual_seed(5)
    head = HeadShape(6, kernel, upsampling).build(3)
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(head(x), reference(x))


def test_it_compiles_to_one_graph_and_gives_the_same() -> None:
    net, x = network(), torch.rand(1, 3, 16, 16)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), net(x))


def test_channels_last_gives_the_same_map_in_the_same_layout() -> None:
    net, x = network().to(memory_format=torch.channels_last), torch.rand(2, 3, 16, 16)
    y = net(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, network_like(net)(x))


def network_like(net: EncoderDecoder) -> EncoderDecoder:
    other = network()
    other.load_state_dict(net.state_dict())
    return other
