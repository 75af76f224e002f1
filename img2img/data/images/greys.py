"""Label pictures whose values are the greys that one sees, however the file keeps them."""

import numpy as np
from PIL import Image


def as_greys(image: Image.Image) -> Image.Image:
    """The picture as 8-bit grey (mode "L") where all that it shows is grey and opaque; else as it is.

    So a mask of black and white is 0 and 255 whether a file has it as grey, as one bit, in a palette, whose order is the
    program's that wrote it, or in three equal channels.
    """
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("P", "PA", "LA", "RGB", "RGBA", "RGBX"):
        return image
    shown = np.asarray(image.convert("RGBA"))
    grey = np.all(shown[..., :3] == shown[..., :1]) and np.all(shown[..., 3] == 255)
    return Image.fromarray(np.ascontiguousarray(shown[..., 0])) if grey else image
