"""An image's own colour space becomes sRGB; the expected values are computed here from the spaces' definitions."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from colour_profiles import GAMMAS, PRIMARIES, WIDE, grey_profile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from img2img.data.images import icc_profile
from img2img.data.images.decode import read_image, read_label
from img2img.inference.conversion import open_input

SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
"""Of the sRGB primaries, adapted to D50."""
RED = (219, 37, 34)


def srgb_curve(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def in_space(srgb: tuple[int, int, int], space: str) -> tuple[int, ...]:
    """The values that show an sRGB colour in a wider space."""
    xyz = SRGB_TO_XYZ @ linear(np.array(srgb) / 255)
    values = np.linalg.solve(np.array(PRIMARIES[space]).T, xyz).clip(0, 1) ** (1 / GAMMAS[space])
    return tuple((255 * values).round().astype(int).tolist())


def near(image_file: NDArray[np.uint8], expected: object, by: int = 3) -> bool:
    return bool(np.abs(image_file.astype(int) - expected).max() <= by)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("space", WIDE)
def test_a_wide_red_is_the_red_that_a_viewer_shows(tmp_path: Path, space: str, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    stored = in_space(RED, space)
    assert not near(np.array(stored), RED, by=12), "read as it is, it would be another red"
    Image.new("RGB", (16, 16), stored).save(path, icc_profile=WIDE[space], quality=100)
    assert near(read_image(path), RED, by=5 if space == "prophoto" else 3)
    with Image.open(path) as image:
        opened = open_input(image)
    assert np.array_equal(opened.values[0].permute(1, 2, 0), read_image(path)), "a PIL image is read as its file is"
    assert np.array_equal(open_input(path).values, opened.values)


def test_results_carry_no_profile(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), in_space(RED, "adobe")).save(tmp_path / "a.png", icc_profile=WIDE["adobe"])
    opened = open_input(tmp_path / "a.png")
    result = opened.image(opened.values / 255)
    assert "icc_profile" not in result.info
    assert near(np.asarray(result), RED)


def test_transparency_survives_and_hidden_colours_lie_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (*in_space(RED, "adobe"), 255))
    image.putpixel((1, 0), (*in_space(RED, "adobe"), 0))
    image.save(tmp_path / "a.png", icc_profile=WIDE["adobe"])
    read = read_image(tmp_path / "a.png")
    assert near(read[0, 0], RED)
    assert read[0, 1].tolist() == [255, 255, 255]
    alpha = open_input(tmp_path / "a.png").alpha
    assert alpha is not None
    assert alpha.tolist() == [[255, 0]]


def test_a_palette_is_converted_and_a_label_keeps_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([0, 0, 0, *in_space(RED, "adobe")])
    image.save(tmp_path / "a.png", icc_profile=WIDE["adobe"])
    assert near(read_image(tmp_path / "a.png"), [[[0, 0, 0], RED]])
    assert read_label(tmp_path / "a.png").tolist() == [[0, 1]]


def test_linear_grey_of_8_and_16_bits_is_brightened(tmp_path: Path) -> None:
    shares = np.array([[0, 3, 51, 255]]) / 255
    expected = np.repeat((255 * srgb_curve(shares))[..., None], 3, axis=2).round()
    for name, dtype, white in (("8", np.uint8, 255), ("16", np.uint16, 65535)):
        Image.fromarray((white * shares).round().astype(dtype)).save(tmp_path / f"{name}.png", icc_profile=grey_profile(1.0))
        assert near(read_image(tmp_path / f"{name}.png"), expected, by=1), name
    translucent = Image.merge("LA", [Image.new("L", (1, 1), 51), Image.new("L", (1, 1), 255)])
    translucent.save(tmp_path / "la.png", icc_profile=grey_profile(1.0))
    assert near(read_image(tmp_path / "la.png"), expected[0, 2], by=1)


def test_lab_needs_no_profile(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 4, 3), (138, 0, 0), np.uint8), photometric="cielab")
    grey = 255 * srgb_curve(np.array(((100 * 138 / 255 + 16) / 116) ** 3))
    assert near(read_image(tmp_path / "a.tif"), grey.round())


def test_cmyk_is_converted_by_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of inks is too long to write here: that the image's own profile is what converts it is what is seen."""

    class Profile:
        device_class, xcolor_space = "prtr", "CMYK"

    class Opened:
        profile = Profile()

    class Transform:
        def apply(self, image: Image.Image) -> Image.Image:
            assert image.mode == "CMYK"
            new = Image.new("RGB", image.size, (1, 2, 3))
            new.info["icc_profile"] = b"srgb"
            return new

    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda file: Opened() if file.read() == b"inks" else None)
    monkeypatch.setattr(ImageCms, "createProfile", lambda name: name)
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *_, **__: Transform())
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100, icc_profile=b"inks")
    assert read_image(tmp_path / "a.jpg")[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "profile",
    [b"no profile", WIDE["adobe"][:200], WIDE["adobe"][:300], grey_profile(1.0), WIDE["adobe"].replace(b"mntr", b"link"), b""],
    ids=["junk", "no tags", "cut off", "of grey", "a device link", "empty"],
)
def test_a_profile_that_cannot_be_used_is_left_aside(tmp_path: Path, profile: bytes) -> None:
    image_file = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(image_file).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(read_image(tmp_path / "a.png"), image_file)


def test_srgb_itself_changes_nothing_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_file = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(image_file).save(tmp_path / "a.png", icc_profile=profile)
    icc_profile._conversion.cache_clear()
    assert np.array_equal(read_image(tmp_path / "a.png"), image_file)
    monkeypatch.setattr(ImageCms.ImageCmsTransform, "apply", lambda *_: pytest.fail("it was converted"))
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *_: pytest.fail("the profile was read again"))
    assert np.array_equal(read_image(tmp_path / "a.png"), image_file)


def test_a_image_converted_by_its_owner_is_not_converted_again() -> None:
    wide = Image.new("RGB", (4, 4), in_space(RED, "adobe"))
    source = ImageCms.ImageCmsProfile(io.BytesIO(WIDE["adobe"]))
    converted = ImageCms.profileToProfile(wide, source, ImageCms.createProfile("sRGB"))
    assert converted is not None
    assert np.array_equal(open_input(converted).values[0].permute(1, 2, 0), np.asarray(converted))
