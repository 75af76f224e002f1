"""Encoder-decoders: those of segmentation-models-pytorch, and encoders of its own kind."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from img2img.backbones.encoder_decoder import EncoderDecoder, HeadShape
from img2img.backbones.smp import ARCHITECTURES, smp_backbone
from img2img.errors import InputError
from img2img.masks.heads import build_head, describe_head

# Small decoders where SMP lets them be small; DPT takes vision transformers only.
SMALL = {
    "unet": {"decoder_channels": (32, 16, 16, 8, 8)},
    "unetplusplus": {"decoder_channels": (32, 16, 16, 8, 8)},
    "manet": {"decoder_channels": (32, 16, 16, 8, 8), "options": {"decoder_pab_channels": 8}},
    "fpn": {"options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}},
    "pspnet": {"options": {"psp_out_channels": 32}},
    "segformer": {"options": {"decoder_segmentation_channels": 16}},
    "deeplabv3": {"decoder_channels": 16},
    "deeplabv3plus": {"decoder_channels": 16},
    "upernet": {"decoder_channels": 16},
    "dpt": {
        "encoder": "tu-vit_tiny_patch16_224",
        "options": {
            "dynamic_img_size": True,
            "decoder_intermediate_channels": (8, 8, 8, 8),
            "decoder_fusion_channels": 8,
        },
    },
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request) -> tuple[str, EncoderDecoder]:
    return request.param, make(request.param)


def make(arch: str, **options) -> EncoderDecoder:
    return smp_backbone(arch, **({"out_channels": 3} | SMALL.get(arch, {}) | options))


def scramble(module: nn.Module) -> None:
    """Give normalisation layers statistics, so that a mix-up of them would show."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)


def reference_of(net: EncoderDecoder, arch: str) -> nn.Module:
    """`smp.create_model` with the options and the weights of `net`."""
    given = SMALL.get(arch, {})
    options = dict(given.get("options", {})) | {k: v for k, v in given.items() if k == "decoder_channels"}
    reference = smp.create_model(arch, given.get("encoder", "resnet18"), encoder_weights=None, classes=3, **options)
    # Layers that ours dropped keep their random weights here: if they mattered, the outputs would differ.
    given_names, own_names = net.encoder.state_dict().keys(), reference.encoder.state_dict().keys()
    assert given_names <= own_names
    reference.encoder.load_state_dict(dict(net.encoder.state_dict()), strict=False)
    head = net.head if isinstance(net.head, nn.Conv2d) else net.head[0]
    if arch == "dpt":
        reference.decoder.load_state_dict(net.decoder.decoder.state_dict())
        reference.segmentation_head.head[:4].load_state_dict(net.decoder.neck.state_dict())
        reference.segmentation_head.head[4].load_state_dict(head.state_dict())
    else:
        reference.decoder.load_state_dict(net.decoder.state_dict())
        reference.segmentation_head[0].load_state_dict(head.state_dict())
    return reference


def test_each_decoder_computes_exactly_what_smps_model_computes(built) -> None:
    arch, net = built
    scramble(net)
    reference = reference_of(net, arch)
    size = max(64, net.min_size)  # PAN pools its deepest map, a 16th of the image, by 8
    x = torch.rand(2, 3, size, size)
    normal = (x - net.mean) / net.std
    with torch.no_grad():
        for mode in (False, True):  # in training the seed fixes dropout, and batch statistics are used
            torch.manual_seed(1)
            y = net.train(mode)(x)
            torch.manual_seed(1)
            assert torch.equal(y, reference.train(mode)(normal))
    assert y.shape == (2, 3, *x.shape[-2:])
    assert y.std() > 0


def test_each_network_maps_the_smallest_and_an_uneven_image_to_its_own_size_and_trains_whole(built) -> None:
    _, net = built
    net.eval()(torch.rand(1, 3, net.min_size, net.min_size))
    size = (net.min_size, net.min_size + net.stride)
    y = net(torch.rand(1, 3, *size))
    assert y.shape == (1, 3, *size)
    assert all(p.grad is None for p in net.parameters())
    y.sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    with pytest.raises(InputError):
        net(torch.rand(1, 3, net.stride + 1, net.min_size))


def test_the_layers_that_a_shallow_encoder_never_runs_are_dropped() -> None:
    net = make("pspnet")
    kept = {n.split(".")[0] for n, _ in net.encoder.named_parameters()}
    assert kept == {"conv1", "bn1", "layer1", "layer2"}


def test_building_leaves_the_mode_and_the_statistics_of_a_fresh_network() -> None:
    net = make("unet")
    assert all(m.training for m in net.modules())
    fresh = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.num_batches_tracked == 0 and torch.equal(m.running_var, torch.ones_like(m.running_var)) for m in fresh)


def test_unet_compiles_to_one_graph_and_runs_in_channels_last() -> None:
    net = make("unet", depth=3, decoder_channels=(16, 8, 8)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = net(x)
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), y)
        last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "unets"}, "arch 'unets' is unknown.*'unet'"),
        ({"encoder": "resnet19"}, "'resnet19'.*'resnet18'"),
        ({"encoder": "tu-resnet19"}, "tu-resnet19.*timm"),
        ({"options": {"decoder_attention": "scse"}}, "decoder_attention.*decoder_attention_type"),
        ({"options": {"activation": "sigmoid"}}, "activation"),
        ({"options": {"aux_params": {"classes": 2}}}, "aux_params"),
        ({"encoder": "tu-resnet18", "options": {"in_channels": 1}}, "in_channels"),
        ({"encoder": "tu-resnet18", "options": {"typo": 1}}, "typo"),
        ({"arch": "fpn", "decoder_channels": 64}, "no decoder_channels.*pyramid_channels"),
        ({"depth": 3}, "decoder_channels"),
        ({"arch": "pspnet", "depth": 5}, "8 pixels of 32.*upsampling"),
        ({"arch": "dpt"}, "Only Timm encoders"),
        ({"arch": "linknet", "encoder": "mit_b0"}, "not supported"),
    ],
)
def test_what_smp_cannot_build_is_an_input_error_that_says_why(options, message) -> None:
    with pytest.raises(InputError, match=message):
        smp_backbone(**({"out_channels": 1} | options))


def test_options_reach_smp_and_timm() -> None:
    net = smp_backbone(
        "unet", "tu-resnet18", out_channels=2, decoder_channels=[32, 16, 16], depth=3,
        options={"decoder_attention_type": "scse", "act_layer": "silu"},
    )  # fmt: skip
    assert net.stride == 8
    assert any(isinstance(m, nn.SiLU) for m in net.encoder.modules())
    assert any(type(m).__name__ == "SCSEModule" for m in net.decoder.modules())
    assert net.spec["decoder_channels"] == [32, 16, 16]


def test_each_encoder_gets_images_normalised_as_its_published_weights_expect() -> None:
    lite = smp_backbone("unet", "tu-tf_efficientnet_lite0", out_channels=1, decoder_channels=(8, 8, 8, 8, 8))
    assert (lite.mean * 255).flatten().tolist() == pytest.approx([127] * 3)
    assert (lite.std * 255).flatten().tolist() == pytest.approx([128] * 3)
    resnet = make("unet")
    assert resnet.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    plain = smp_backbone("unet", "tu-mobilevit_xxs", out_channels=1, decoder_channels=(8, 8, 8, 8, 8))
    assert plain.std.flatten().tolist() == [1, 1, 1]  # as timm's config of it says


def test_a_network_of_one_fixed_size_says_so() -> None:
    net = smp_backbone(
        "unet", "tu-swin_tiny_patch4_window7_224", out_channels=1, decoder_channels=(8, 8, 8, 8, 8),
        options={"img_size": 64, "window_size": 2},
    )  # fmt: skip
    assert net(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    with pytest.raises(InputError, match=r"96 x 64.*to 128 x 64"):
        net(torch.rand(1, 3, 96, 64))


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
