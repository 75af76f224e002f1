"""Converts a user's images into one form for networks, and results back into the type of the input."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from img2img.data.images.bit_depth import (
    DEEP_MODES,
    check_white,
    current_white,
    has_deep_colours,
    note_highest_value,
    reading_16_bits,
    to_8_bits,
)
from img2img.data.images.colour_key import with_true_key
from img2img.data.images.decode import MAX_PIXELS, check_enlarged, open_encoded, open_image, to_rgb
from img2img.data.images.exif import upright
from img2img.data.images.header import decoder_arguments
from img2img.errors import InputError
from img2img.inference.remedies import array_remedy, range_remedy, tensor_remedy
from img2img.tasks.base import pixels
from img2img.tasks.segmentation import palette

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor
"""What `Model.run` takes for one image (a tensor of four dimensions is a batch of them):

- a path, or the bytes of a file: any image that `data.images.decode.read_image` reads;
- a PIL image of any 8- or 16-bit mode;
- (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 in [0, 255], or uint16 in [0, 65535]: grey, RGB or RGBA;
- (C, H, W) or (N, C, H, W) float tensors in [0, 1], C of 1 or 3.
"""


def _bicubic(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) in [0, 255] of `size`, in the same type."""
    made = F.interpolate(values.float(), size, mode="bicubic", align_corners=False).clamp_(0, 255)
    return made.round_().to(values.dtype) if values.dtype == torch.uint8 else made


def _without_white(shown: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours (H, W, 3) which, with their transparency `alpha` (H, W), on white look like `shown`.

    Networks see an image on white; with its transparency given back, what shone through would count twice.
    """
    partly = (alpha > 0) & (alpha < 255)
    share = alpha[partly, None].astype(np.float32) / 255
    colours = shown.copy()
    colours[partly] = ((shown[partly] - 255 * (1 - share)) / share).round().clip(0, 255)
    return colours


@dataclass(frozen=True)
class OpenedImages:
    """Images of one size that were given as one input, and the way back to the input's type.

    Attributes:
        values: (N, 3, H, W) in [0, 255]: uint8, or float32 for an input tensor.
        kind: the input's type: "image" (PIL, or a file), "array" or "tensor".
        batched: the input was a tensor of four dimensions.
        alpha: (H, W) uint8, the transparency, which photos made of it keep; None for none.
        origin: of a tensor its device, where results go.
    """

    values: Tensor
    kind: Literal["image", "array", "tensor"]
    batched: bool = False
    alpha: NDArray[np.uint8] | None = None
    origin: str = "cpu"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.values.shape[-2], self.values.shape[-1]

    def enlarged(self, times: int) -> "OpenedImages":
        """The images with `times` as many pixels each way, by bicubic interpolation; with 1 these.

        Raises:
            InputError: they would be too large.
        """
        if times == 1:
            return self
        height, width = (times * side for side in self.size)
        check_enlarged(height, width, f"the image of {self.size[1]} x {self.size[0]}", "give a smaller image")
        alpha = self.alpha
        if alpha is not None:
            alpha = _bicubic(torch.from_numpy(alpha)[None, None], (height, width))[0, 0].numpy()
        return replace(self, values=_bicubic(self.values, (height, width)), alpha=alpha)

    def allocate(self, shown: Tensor, form: str, size: tuple[int, int]) -> Tensor:
        """An empty tensor for the result in `form` of all N images, (N, ..., H, W) of `size`; `write_part` fills it.

        Args:
            shown: a part of it.
            form: one of the task's.
            size: (height, width) of the whole.
        """
        if self.kind == "tensor":
            return shown.new_empty(len(self.values), *shown.shape[1:-2], *size, device=self.origin)
        if form == "labels":
            return torch.empty(len(self.values), *size, dtype=torch.uint8)
        # As images lie in arrays, so that the result is made of it without another copy.
        return torch.empty(len(self.values), *size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def write_part(self, whole: Tensor, place: Any, shown: Tensor, form: str) -> None:
        """Write a part of what is shown to its place, an index, of what `allocate` gave."""
        if self.kind != "tensor" and form != "labels":
            shown = shown.mul(255).round_()
        whole[place] = shown.to(whole.device, whole.dtype)

    def result(self, shown: Tensor, form: str, classes: Sequence[str], channels: int, transparent: bool) -> Any:
        """The result in `form` of all images, or the tensor of `allocate`, in the input's type.

        Args:
            shown: (N, 3, H, W), (N, H, W) for labels, (N, classes) for scores.
            form: one of the task's.
            classes: their names, for scores.
            channels: of the head: how many labels there are.
            transparent: images keep the input's transparency.
        """
        if form == "labels":
            return self.labels(shown, channels)
        return self.scores(shown, tuple(classes)) if form == "scores" else self.image(shown, transparent=transparent)

    def image(self, shown: Tensor, *, transparent: bool = True) -> Any:
        """(N, 3, H, W) in [0, 1], or uint8, in the input's type: a PIL image, an array or a tensor.

        With `transparent` it is RGBA if the input was.
        """
        if self.kind == "tensor":
            return self._tensor(shown.float())
        array = shown[0].permute(1, 2, 0).numpy() if shown.dtype == torch.uint8 else pixels(shown[0])
        if transparent and self.alpha is not None and self.alpha.shape == array.shape[:2]:
            array = np.concatenate([_without_white(array, self.alpha), self.alpha[..., None]], axis=2)
        return array if self.kind == "array" else Image.fromarray(array)

    def labels(self, labels: Tensor, classes: int) -> Any:
        """(N, H, W) class indices as a palette PNG's image, (H, W) uint8, or an int64 tensor."""
        if self.kind == "tensor":
            return self._tensor(labels)
        array = labels[0].to(torch.uint8).cpu().numpy()
        if self.kind == "array":
            return array
        image = Image.fromarray(array, mode="P")
        image.putpalette(palette(classes).mul(255).round().to(torch.uint8).numpy().tobytes())
        return image

    def scores(self, scores: Tensor, classes: tuple[str, ...]) -> Any:
        """(N, classes) probabilities as a dict by class, the likeliest first, or as a tensor."""
        if self.kind == "tensor":
            return self._tensor(scores)
        values, order = scores[0].sort(descending=True)
        return {classes[i]: p for i, p in zip(order.tolist(), values.tolist(), strict=True)}

    def _tensor(self, result: Tensor) -> Tensor:
        result = result.to(self.origin)
        return result if self.batched else result[0]


def open_file(encoded: bytes, *, white: int | None = None, formats: tuple[str, ...] | None = None) -> OpenedImages:
    """Read the bytes of an image file.

    Args:
        encoded: the whole file.
        white: as of `open_input`.
        formats: those of Pillow that it may have; None for all.

    Raises:
        InputError: see `data.images.decode.open_image`.
    """
    with reading_16_bits(check_white(white)):
        return _from_image(open_encoded(encoded, formats=formats), "the image", where="images in memory")


def open_input(image: ImageLike | OpenedImages, *, white: int | None = None) -> OpenedImages:
    """Read or convert what a user gave; what is open already stays as it is.

    Args:
        image: what was given.
        white: the value that is white in images and arrays of 16 bits, and what is above it; None for 65535.

    Raises:
        InputError: no such file, no image, or a type, shape or range that is not an `ImageLike`'s.
    """
    if isinstance(image, OpenedImages):
        return image
    with reading_16_bits(check_white(white)):
        return _open(image)


def _open(image: ImageLike) -> OpenedImages:
    if isinstance(image, str | os.PathLike):
        return _from_image(open_image(image), str(image), where=os.path.dirname(image) or ".")
    if isinstance(image, bytes):
        return _from_image(open_encoded(image), "the image", where="images in memory")
    if isinstance(image, Image.Image):
        return _from_image(_decoded(image), "the image")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise InputError(
        f"got a {type(image).__name__}: expected a path, the bytes of a file, a PIL image, a numpy array (H, W, 3) uint8 or a "
        "tensor (3, H, W) in [0, 1]; convert it"
    )


def _decoded(image: Image.Image) -> Image.Image:
    """An image of the caller's, upright, with its pixels read, of which there are some, and not too many."""
    width, height = image.size
    if not width * height:
        raise InputError(f"the image has {width} x {height} pixels: expected some; give another")
    if width * height > MAX_PIXELS and getattr(image, "fp", None) is not None:  # still in its file
        raise InputError(
            f"the image claims {width} x {height} pixels: expected at most {MAX_PIXELS:,}; make it smaller or cut it up"
        )
    raw = decoder_arguments(image)
    _check_depth(image, raw)
    try:
        image.load()
        image.getpixel((width - 1, height - 1))  # one that was closed raises here, and not before
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged bytes, and for a closed image ValueError
        raise InputError(
            f"the image cannot be read, it is damaged or was closed ({type(error).__name__}: {error}): expected an open image "
            "with all its pixels; open it again, and keep its file open until it has run"
        ) from error
    return with_true_key(upright(image), raw or (), "the image", "the image")


def _check_depth(image: Image.Image, raw: tuple[Any, ...] | None) -> None:
    """Refuse an image of 16-bit colours, of which Pillow keeps 8, where what is lost is needed; or that may be such a one.

    Args:
        image: the caller's.
        raw: what Pillow's decoder was told; None where nobody knows any more.
    """
    white, key = current_white(), image.info.get("transparency")
    if raw is None and white is not None and image.mode in DEEP_MODES:
        raise InputError(
            f"the image is a {image.format} whose pixels were read already, and white={white} is for colours of 16 bits, which "
            "it had or not: give its path, the bytes of its file, or an array; where it had 8 bits, a copy: image.copy()"
        )
    deep_key = image.mode == "RGB" and isinstance(key, tuple) and max(key, default=0) > 255
    if not (deep_key or has_deep_colours(image.format, raw or (), image.mode)):
        return
    if white is not None or isinstance(key, tuple):
        lost = "its transparent one cannot be found" if white is None else f"white={white} cannot be applied"
        raise InputError(
            f"the image has colours of 16 bits, of which Pillow keeps 8, and {lost}: give its path, the bytes of its file, or "
            "an array of 16 bits"
        )


def _from_image(image: Image.Image, what: str, *, where: str | None = None) -> OpenedImages:
    if image.mode == "La":  # grey multiplied by its alpha, from which Pillow goes to nothing else
        image = image.convert("LA")
    # The alpha of a CMYK image does not exist; that of a palette is in its table.
    alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    return OpenedImages(_channels_first(to_rgb(image, what, where=where)), "image", alpha=alpha)


def _from_array(array: NDArray[Any]) -> OpenedImages:
    shaped = array[..., None] if array.ndim == 2 else array
    if array.dtype == np.uint16 or array.dtype == np.dtype(">u2"):
        shaped, array = shaped.astype(np.uint16), array.astype(np.uint16)  # files of some kinds have the other byte order
    if array.dtype not in (np.uint8, np.uint16) or shaped.ndim != 3 or shaped.shape[2] not in (1, 3, 4) or not array.size:
        raise InputError(
            f"got an array of {array.shape} {array.dtype}: expected (H, W, 3) uint8 in [0, 255], grey (H, W), RGBA (H, W, 4), or "
            f"those as uint16; {array_remedy(array)}"
        )
    eight = _8_bits(shaped) if array.dtype == np.uint16 else np.ascontiguousarray(shaped)
    if eight.shape[2] == 1:
        eight = eight[..., 0]
    opened = _from_image(Image.fromarray(eight), "the array")
    return OpenedImages(opened.values, "array", alpha=opened.alpha)


def _8_bits(deep: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, C) uint16 as uint8; an alpha uses all 16 bits, whatever is white."""
    colours, alpha = deep[..., :3], deep[..., 3:]
    note_highest_value(int(colours.max()), "the array", "arrays")
    return np.concatenate([to_8_bits(colours, current_white()), to_8_bits(alpha)], axis=2)


def _from_tensor(tensor: Tensor) -> OpenedImages:
    lack = ", which has no values" if tensor.device.type == "meta" else ", sparse" if tensor.layout != torch.strided else ""
    batch = tensor[None] if tensor.ndim == 3 and not lack else tensor
    if lack or batch.ndim != 4 or batch.shape[1] not in (1, 3) or not batch.numel() or not batch.is_floating_point():
        raise InputError(
            f"got a tensor of {tuple(tensor.shape)} {tensor.dtype}{lack}: expected (N, 3, H, W) or (3, H, W) "
            f"float in [0, 1], with one channel where grey; {tensor_remedy(tensor)}"
        )
    batch = batch.detach().float()
    # A little beyond the range is what resizing leaves; NaN fails both comparisons.
    low, high = batch.min().item(), batch.max().item()
    if not (low >= -0.05 and high <= 1.05):
        raise InputError(f"got a tensor with values from {low:g} to {high:g}: expected [0, 1]; {range_remedy(low, high)}")
    values = batch.clamp(0, 1).mul(255).expand(-1, 3, -1, -1)
    return OpenedImages(values, "tensor", batched=tensor.ndim == 4, origin=str(tensor.device))


def _channels_first(array: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()
