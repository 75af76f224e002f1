"""Colours into sRGB by the profile that a picture carries (ICC): networks, screens and results take RGB for sRGB."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_MODES = {
    **dict.fromkeys(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"), "RGB"),
    **dict.fromkeys(("L", "LA", "La"), "L"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "I;16"),
    "CMYK": "CMYK",
    "LAB": "LAB",
}
"""The mode in which the colours of each mode are converted."""
_SPACES = {"RGB": "RGB", "L": "GRAY", "I;16": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
_CLASSES = ("mntr", "scnr", "prtr", "spac")
"""Profiles of monitors, scanners, printers and colour spaces; others are no description of a picture's colours."""

SAME = 2
"""A profile that changes no colour by more than this, of 255, is taken for sRGB, and the values stay as they are."""


def to_srgb(image: Image.Image) -> Image.Image:
    """The picture's colours in sRGB, by the profile in `image.info["icc_profile"]`; Lab needs none.

    Returns:
        An RGB picture, RGBA where it has transparency, without a profile. The picture itself, where it has no profile, that of
        sRGB, or one that is damaged or of other colours than the picture's.
    """
    profile, mode = image.info.get("icc_profile"), _MODES.get(image.mode)
    if mode is None or not ((isinstance(profile, bytes) and profile) or mode == "LAB"):
        return image
    convert = _conversion(profile, mode) or (_conversion(None, mode) if mode == "LAB" else None)
    if convert is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = convert(image if image.mode == mode else image.convert(mode))
    converted.info.pop("icc_profile", None)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@functools.lru_cache(maxsize=16)
def _conversion(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """From a profile's colours, or standard Lab, to 8-bit sRGB; None where nothing is to be done, or can be."""
    try:
        opened = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB") if profile is None else io.BytesIO(profile))
        description = opened.profile
        known = profile is None or description.device_class.strip() in _CLASSES
        if not known or description.xcolor_space.strip() != _SPACES[mode]:
            return None
        # Unless told not to, Little CMS samples a curve of grey at a few points, too few for dark greys.
        flags = ImageCms.Flags.NOOPTIMIZE if _SPACES[mode] == "GRAY" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    except Exception:  # a damaged profile says nothing about the pixels, and raises almost anything
        return None
    if _SPACES[mode] == "GRAY":  # so exact a transform is slow, and there are few greys
        ramp = np.arange(256, dtype=np.uint8) if mode == "L" else np.arange(65536, dtype=np.uint16)
        table = np.asarray(transform.apply(Image.fromarray(ramp[None])))[0]
        same = _same(table, (ramp.astype(int) // (1 if mode == "L" else 257))[:, None])
        return None if same else functools.partial(_looked_up, table)
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3)
        if _same(np.asarray(transform.apply(Image.fromarray(colours))), colours):
            return None
    return transform.apply


def _same(colours: NDArray[Any], expected: NDArray[Any]) -> bool:
    return bool(np.abs(colours.astype(int) - expected).max() <= SAME)


def _looked_up(table: NDArray[np.uint8], grey: Image.Image) -> Image.Image:
    return Image.fromarray(table[np.asarray(grey)])
