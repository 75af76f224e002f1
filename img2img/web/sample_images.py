"""Images to try: photographs that scikit-image ships, and rendered scenes like those that the demo learns."""

import functools
from importlib.util import find_spec
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from img2img.data.datasets.sample_photos import style_image
from img2img.data.synthetic.scenes import Scenes

PHOTOS = ("coffee", "astronaut", "chelsea", "rocket")
"""`docs/reference/third_party.md` says whose they are."""
SCENES = ("landscape", "shapes")
SHORT_SIDE = 320
SCENE_SIDE = 256


def sample_names() -> tuple[str, ...]:
    """The samples that there are; none where scikit-image is not installed."""
    return () if find_spec("skimage") is None else (*PHOTOS, *SCENES)


@functools.cache
def sample_image(name: str) -> bytes:
    """A sample as a PNG, made when it is first asked for; `name` is one of `sample_names`."""
    return _png(Scenes(name, "test", count=1, size=SCENE_SIDE)[0].image) if name in SCENES else _photo(name)


def _photo(name: str) -> bytes:
    with Image.open(style_image(name)) as file:
        photo = file.convert("RGB")
    scale = SHORT_SIDE / min(photo.size)
    return _png(np.asarray(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)))


def _png(image: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
