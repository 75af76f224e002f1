"""What image files say of themselves: orientation and colour profiles."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from colour_profiles import GAMMAS, PRIMARIES, WIDE, grey_profile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from img2img.data import build_data
from img2img.data.base import ImageDataset
from img2img.data.datasets.coco import CocoSegmentation
from img2img.data.datasets.folder import ImageLabelFolder
from img2img.data.datasets.pairs import PairedFolders
from img2img.data.datasets.voc import VocSegmentation
from img2img.data.datasets.voc_sbd import VocSbd
from img2img.data.images import icc_profile
from img2img.data.images.decode import read_image, read_label
from img2img.data.images.exif import header_orientation, turned
from img2img.data.warn_once import collect_warnings
from img2img.errors import InputError
from img2img.inference.conversion import open_input

HEIGHT, WIDTH = 16, 24


def thing(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Where the thing is in the stored pixels: nowhere near where it is once they are turned."""
    label = np.zeros((height, width), dtype=np.uint8)
    label[1:5, 2:9] = 1
    return label


def photo(path: Path, orientation: int, label: NDArray[np.uint8], **options: Any) -> None:
    """A photo whose stored pixels are white where the thing is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.repeat(label[..., None] * np.uint8(255), 3, axis=2)).save(path, exif=exif, **options)


def drawn(path: Path, label: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path, **options)


def folders(root: Path, orientation: int, label: NDArray[np.uint8], on: NDArray[np.uint8], **options: Any) -> ImageDataset:
    photo(root / "images" / "a.png", orientation, label)
    drawn(root / "labels" / "a.png", on)
    return ImageLabelFolder(root / "images", root / "labels", ["ground", "thing"], **options)


def paired(root: Path, orientation: int, label: NDArray[np.uint8], on: NDArray[np.uint8], **options: Any) -> ImageDataset:
    photo(root / "inputs" / "a.png", orientation, label)
    drawn(root / "targets" / "a.png", on * np.uint8(255))
    return PairedFolders(root / "inputs", root / "targets", **options)


def voc_year(root: Path, orientation: int, label: NDArray[np.uint8], on: NDArray[np.uint8]) -> None:
    photo(root / "JPEGImages" / "a.jpg", orientation, label, quality=100)
    drawn(root / "SegmentationClass" / "a.png", on)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("a\n")


def voc(root: Path, orientation: int, label: NDArray[np.uint8], on: NDArray[np.uint8], **options: Any) -> ImageDataset:
    voc_year(root, orientation, label, on)
    return VocSegmentation(root, "train", **options)


def sbd(root: Path, orientation: int, label: NDArray[np.uint8], on: NDArray[np.uint8], **options: Any) -> ImageDataset:
    voc_year(root / "voc", orientation, label, on)
    for folder in ("img", "cls"):
        (root / "sbd" / folder).mkdir(parents=True, exist_ok=True)
    (root / "sbd" / "train.txt").write_text("b\n")
    return VocSbd(root / "sbd", root / "voc", "test", **options)


def coco(root: Path, orientation: int, label: NDArray[np.uint8], on: NDArray[np.uint8], **options: Any) -> ImageDataset:
    photo(root / "images" / "a.png", orientation, label)
    flat = on.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = {"size": list(on.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": on.shape[0], "width": on.shape[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": runs, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return CocoSegmentation(root / "images", root / "instances.json", **options)


Open = Callable[..., ImageDataset]
FORMATS: list[Open] = [folders, paired, voc, sbd, coco]


def fits(images: ImageDataset) -> bool:
    """Whether the label, or the target, lies where the thing is in the image that is shown."""
    sample = images[0]
    if sample.source is not None:
        return np.array_equal(sample.source, sample.image)
    assert sample.label is not None
    return np.array_equal(sample.image[..., 0] > 127, sample.label == 1)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (HEIGHT, HEIGHT)], ids=["oblong", "square"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.__name__)
def test_the_label_lies_on_the_thing_however_it_was_drawn(
    tmp_path: Path, format: Open, orientation: int, size: tuple[int, int]
) -> None:
    label = thing(*size)
    shown = turned(label, orientation)
    for name, on in (("stored", label), ("shown", shown)):
        images = format(tmp_path / name, orientation, label, on, drawn_on=name)
        assert fits(images), name
        image = images[0].image[..., 0] > 127
        assert np.array_equal(image, shown == 1), "the image is what a viewer shows, in both cases"


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.__name__)
def test_nobody_asked_is_told_once_how_many_are_turned(tmp_path: Path, format: Open, caplog: pytest.LogCaptureFixture) -> None:
    label = thing()
    taken, other = ("stored", "shown") if format is coco else ("shown", "stored")
    on = label if taken == "stored" else turned(label, 3)
    with collect_warnings() as remarks:
        images = format(tmp_path, 3, label, on)
    assert fits(images)
    (said,) = remarks
    assert "EXIF turns 1 of 1 labelled photos" in said
    assert f"(drawn_on: {taken})" in said
    assert f"give drawn_on: {other}" in said
    with collect_warnings() as remarks:
        format(tmp_path, 3, label, on, drawn_on=taken)
        format(tmp_path / "plain", 1, label, label)
    assert remarks == [], "nothing where it is said, or nothing is turned"
    with caplog.at_level(logging.WARNING, "img2img"):
        format(tmp_path, 3, label, on)
        format(tmp_path, 3, label, on)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.__name__)
def test_where_the_sizes_say_that_it_is_the_other_the_error_names_the_option(tmp_path: Path, format: Open) -> None:
    label = thing()
    for name, on, other in (("stored", turned(label, 6), "shown"), ("shown", label, "stored")):
        with pytest.raises(InputError, match=rf"with drawn_on: {other}"):
            format(tmp_path / name, 6, label, on, drawn_on=name)[0]


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.__name__)
def test_another_value_is_refused(tmp_path: Path, format: Open) -> None:
    with pytest.raises(InputError, match=r"drawn_on='raw'.*'shown'.*'stored'"):
        format(tmp_path, 1, thing(), thing(), drawn_on="raw")


def test_a_label_that_is_turned_by_its_own_exif_is_in_no_doubt(tmp_path: Path) -> None:
    label = thing()
    exif = Image.Exif()
    exif[274] = 6
    for option in (None, "shown", "stored"):
        photo(tmp_path / "images" / "a.png", 6, label)
        drawn(tmp_path / "labels" / "a.png", label, exif=exif)
        with collect_warnings() as remarks:
            images = ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["ground", "thing"], drawn_on=option)
        assert fits(images), option
        assert remarks == []


def test_counting_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extension in ("png", "jpg", "tif", "webp"):
        photo(tmp_path / f"a.{extension}", 6, thing())
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    assert [header_orientation(tmp_path / f"a.{e}") for e in ("png", "jpg", "tif")] == [6, 6, 6]
    assert header_orientation(tmp_path / "gone.png") == 1


def test_of_very_many_photos_a_spread_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.data.images.exif._LOOKED_AT", 5)
    for i in range(10):
        photo(tmp_path / "images" / f"{i}.png", 3 if i % 2 else 1, thing())
        drawn(tmp_path / "labels" / f"{i}.png", thing())
    with collect_warnings() as remarks:
        ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["ground", "thing"])
        assert remarks == []  # 0, 2, 4, 6, 8
        (tmp_path / "images" / "0.png").unlink()
        ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["ground", "thing"])
    assert any("of 5 labelled photos looked at" in text for text in remarks)


def test_it_is_an_option_of_a_config(tmp_path: Path) -> None:
    for i in range(10):
        photo(tmp_path / "images" / f"{i}.png", 3, thing())
        drawn(tmp_path / "labels" / f"{i}.png", thing())
    config = {"kind": "image_label_folder", "images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    config |= {"classes": ["ground", "thing"]}  # type: ignore[dict-item]
    (said,) = build_data(config).train.warnings()
    assert "EXIF turns 10 of 10 labelled photos" in said
    parts = build_data(config | {"drawn_on": "stored"})
    assert parts.train.warnings() == []
    assert fits(parts.train)


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
