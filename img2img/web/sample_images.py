"""Images to try: photographs that scikit-image ships, and rendered scenes like those that the demo learns."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.datasets.sample_photos import style_image
from img2img.data.synthetic.scenes import Scenes
from img2img.errors import InputError
from img2img.web.temporary_images import TemporaryImages

PHOTOS = ("coffee", "astronaut", "chelsea", "rocket")
"""`docs/third_party.md` says whose they are."""
SCENES = ("landscape", "shapes")
SHORT_SIDE = 320
SCENE_SIDE = 256


def sample_images(folder: TemporaryImages) -> dict[str, Path]:
    """The samples as files in `folder`, by name; none where scikit-image is not installed."""
    try:
        images = {name: _photo(name) for name in PHOTOS}
        images |= {name: _png(Scenes(name, "test", count=1, size=SCENE_SIDE)[0].image) for name in SCENES}
    except InputError:
        return {}
    return {name: folder.add(blob, ".png") for name, blob in images.items()}


def _photo(name: str) -> bytes:
    with Image.open(style_image(name)) as file:
        photo = file.convert("RGB")
    scale = SHORT_SIDE / min(photo.size)
    return _png(np.asarray(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)))


def _png(image: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
