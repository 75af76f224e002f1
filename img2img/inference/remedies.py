"""How an array or a tensor that is no image becomes one: the expression that an error names."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def array_remedy(array: NDArray[Any]) -> str:
    """What to do with an array that is not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16."""
    if not array.size or array.dtype.kind not in "biuf" or array.ndim not in (2, 3, 4):
        return "give one image"
    if array.ndim == 4:
        return "give many as a list: list(x)"
    text = "x"
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        if array.shape[0] not in (1, 3, 4):
            return "give one image, of 1, 3 or 4 channels"
        text = "x.transpose(1, 2, 0)"
    if array.dtype in (np.uint8, np.uint16):
        return f"convert it: {text}"
    if array.dtype == bool:
        return f"convert it: 255 * {text}.astype('uint8')"
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return "it has NaN or infinite values: replace them, as np.nan_to_num(x) does"
    if array.dtype.kind in "iu":
        if low >= 0 and high <= 1:
            return f"convert it: (255 * {text}).astype('uint8')"
        if low >= 0 and high <= 65535:
            return f"convert it: {text}.astype('{'uint8' if high <= 255 else 'uint16'}')"
    elif low >= 0 and high <= 1:
        return f"convert it: (255 * {text}).round().astype('uint8')"
    elif low >= -1 and high <= 1:
        return f"convert it: (127.5 * ({text} + 1)).round().astype('uint8')"
    elif low >= 0 and high <= 255:
        return f"convert it: {text}.round().astype('uint8')"
    return f"its values go from {low:g} to {high:g}: scale them to [0, 255], then astype('uint8')"


def tensor_remedy(tensor: Tensor) -> str:
    """What to do with a tensor that is not (C, H, W) or (N, C, H, W) float with one or three channels."""
    if (
        tensor.device.type == "meta"
        or not tensor.numel()
        or tensor.ndim not in (2, 3, 4)
        or tensor.is_complex()
        or tensor.is_quantized
    ):
        return "give an image"
    if tensor.layout != torch.strided:
        return "convert it: x.to_dense()"
    shape, text = tensor.shape, "x"
    channels = shape[-3] if tensor.ndim > 2 else 0
    if tensor.ndim == 2:
        text = "x[None]"
    elif channels not in (1, 3) and shape[-1] in (1, 3, 4):
        text = "x.permute(2, 0, 1)" if tensor.ndim == 3 else "x.permute(0, 3, 1, 2)"
        channels = shape[-1]
    if channels == 4:
        text += "[:3]" if tensor.ndim == 3 else "[:, :3]"
    elif channels not in (0, 1, 3):
        return "give an image of 1 or 3 channels"
    if tensor.dtype == torch.bool:
        return f"convert it: {text}.float()"
    if not tensor.is_floating_point():
        low, high = (value.item() for value in tensor.double().aminmax())
        if low < 0 or high > 255:
            return f"its values go from {low:g} to {high:g}: scale them to [0, 1]"
        return f"convert it: {text} / 255" if high > 1 else f"convert it: {text}.float()"
    return f"convert it: {text}"


def range_remedy(low: float, high: float) -> str:
    """What to do with a tensor whose values go from `low` to `high`, beyond [0, 1]; NaN where any value is."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "replace NaN and infinite values, as x.nan_to_num() does, or look where they come from"
    if -1.05 <= low < 0 and high <= 1.05:
        return "convert it: (x + 1) / 2"
    if low >= 0 and high <= 256:
        return "convert it: x / 255"
    return "scale them"
