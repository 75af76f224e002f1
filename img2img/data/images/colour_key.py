"""The transparent colour of a PNG (its tRNS chunk) where Pillow would compare it with other values than those of the file."""

from typing import Any

import numpy as np
from PIL import Image

from img2img.data.images.bit_depth import current_white, note_highest_value, to_8_bits

_STRETCHED = {"L;2": 85, "L;4": 17}
"""By how much Pillow multiplies greys of 2 and 4 bits, and not the transparent one."""


def with_true_key(image: Image.Image, raw: tuple[Any, ...], what: str, where: str) -> Image.Image:
    """A grey image whose transparent grey is that of its pixels: of 16 bits as 8 bits with an alpha; any other as it is.

    For colours of 16 bits see `bit_depth.scale_deep_colours`.

    Args:
        image: as Pillow decodes it.
        raw: how the file keeps the pixels: what Pillow's decoder was told.
        what: what to call the image.
        where: what to call the set that it is of.
    """
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return image
    others = {name: value for name, value in image.info.items() if name != "transparency"}
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        note_highest_value(int(values.max()), what, where)
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        keyed = Image.fromarray(np.stack([to_8_bits(values, current_white()), alpha], axis=2))
        keyed.info = others
        return keyed
    if image.mode == "L" and raw[:1] and raw[0] in _STRETCHED:
        factor = _STRETCHED[raw[0]]
        keyed = image.copy()
        keyed.info = others | {"transparency": (key & 255 // factor) * factor}
        return keyed
    return image
