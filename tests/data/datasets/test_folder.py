import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from img2img.data.base import VOID
from img2img.data.datasets.folder import ImageFolder, ImageLabelFolder
from img2img.data.datasets.label_table import read_classes
from img2img.data.images.decode import read_label
from img2img.errors import InputError

LABEL = np.array([[0, 1, 2], [2, 2, 11]], dtype=np.uint8)


def write(root: Path, name: str, label: np.ndarray = LABEL, *, suffix: str = "", size: tuple[int, int] | None = None) -> None:
    """`images/{name}.jpg` and `labels/{name}{suffix}.png` below `root`."""
    for path in (root / "images" / f"{name}.jpg", root / "labels" / f"{name}{suffix}.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size or label.shape[::-1], (200, 10, 10)).save(root / "images" / f"{name}.jpg")
    Image.fromarray(label).save(root / "labels" / f"{name}{suffix}.png")


def open_set(root: Path, classes: Any = ("sky", "road", "car"), **options: Any) -> ImageLabelFolder:
    return ImageLabelFolder(root / "images", root / "labels", classes, **{"void": (11,), **options})


def test_an_image_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for i, name in enumerate(("b/1.png", "a/2.png", "c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 3), (i, i, i)).save(tmp_path / name)
    images = ImageFolder(tmp_path)
    assert [(s.name, int(s.image[0, 0, 0])) for s in images] == [("a/2.png", 1), ("b/1.png", 0), ("c.png", 2)]
    assert images[0].image.shape == (3, 2, 3)
    assert images[0].label is None
    assert images.classes == ()
    assert images.name == tmp_path.name
    assert len(images) == 3


def test_image_folders_refuse_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest that exists"):
        ImageFolder(tmp_path / "gone")
    with pytest.raises(InputError, match="no image in"):
        ImageFolder(tmp_path)


def test_labels_are_paired_by_path_and_void_is_mapped(tmp_path: Path) -> None:
    write(tmp_path, "sub/b")
    write(tmp_path, "a.v2", np.zeros((4, 5), dtype=np.uint8))
    images = open_set(tmp_path)
    assert [s.name for s in images] == ["a.v2.jpg", "sub/b.jpg"]
    assert images.classes == ("sky", "road", "car")
    label = images[1].label
    assert label is not None
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, [[0, 1, 2], [2, 2, VOID]])
    assert images[1].image.shape == (2, 3, 3)


def test_labels_may_have_a_suffix_and_images_a_missing_partner_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a", suffix="_L")
    np.testing.assert_array_equal(open_set(tmp_path, suffix="_L")[0].label, [[0, 1, 2], [2, 2, VOID]])
    with pytest.raises(InputError, match=r"a\.jpg.*labels.a\.png.*suffix"):
        open_set(tmp_path)


def test_the_number_of_missing_labels_is_told(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path, name)
    for name in "bc":
        (tmp_path / "labels" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"no label for .*b\.jpg and 1 more images"):
        open_set(tmp_path)


def test_a_label_out_of_range_is_named_with_its_values(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 3, 4, 5, 77, 255, 11]], dtype=np.uint8))
    with pytest.raises(InputError, match=r"a\.png.*3\.\.5, 77, 255.*0\.\.2, 11"):
        open_set(tmp_path)[0]


def test_255_is_void_unless_told_otherwise(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[1, 255]], dtype=np.uint8))
    np.testing.assert_array_equal(ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["a", "b"])[0].label, [[1, VOID]])


def test_a_label_of_another_size_names_both_sizes(tmp_path: Path) -> None:
    write(tmp_path, "a", size=(6, 4))
    with pytest.raises(InputError, match=r"a\.jpg.*6 x 4.*a\.png.*3 x 2"):
        open_set(tmp_path)[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_images_of_other_kinds_still_fit_their_labels(tmp_path: Path, mode: str) -> None:
    write(tmp_path, "a")
    (tmp_path / "images" / "a.jpg").unlink()
    Image.new(mode, (3, 2)).save(tmp_path / "images" / "a.png")
    assert open_set(tmp_path)[0].image.shape == (2, 3, 3)


def test_damaged_images_and_labels_are_named(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path, name)
    (tmp_path / "images" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "labels" / "b.png").write_bytes(b"\x89PNG")
    images = open_set(tmp_path)
    with pytest.raises(InputError, match=r"images.a\.jpg"):
        images[0]
    with pytest.raises(InputError, match=r"labels.b\.png"):
        images[1]


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a")
    Image.fromarray(LABEL).save(tmp_path / "labels" / "a.tif")
    with pytest.raises(InputError, match=r"a\.png and .*a\.tif|a\.tif and .*a\.png"):
        open_set(tmp_path)


def test_a_void_value_with_a_name_leaves_the_classes(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 1, 2, 255]], dtype=np.uint8))
    images = open_set(tmp_path, ("sky", "unlabelled", "car"), void=(1, 255))
    assert images.classes == ("sky", "car")
    np.testing.assert_array_equal(images[0].label, [[0, VOID, 1, VOID]])


def test_groups_merge_classes_and_the_rest_is_background(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 1, 2, 3, 4, 255]], dtype=np.uint8))
    names = ("null", "shirt", "coat", "hair", "skin")
    images = open_set(tmp_path, names, void=(255,), groups={"upper": ["coat", "shirt"], "body": ["skin"]})
    assert images.classes == ("background", "upper", "body")
    np.testing.assert_array_equal(images[0].label, [[0, 1, 1, 0, 2, VOID]])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"upper": ["shrit"]}, r"'upper'.*'shrit'.*mean shirt"),
        ({"upper": ["shirt"], "all": ["coat", "shirt"]}, "'shirt' is in two groups"),
        ({"upper": []}, "'upper' is"),
        ({"upper": "shirt"}, "expected a list of class names"),
        ({"background": ["shirt"]}, "no 'background'"),
        ({}, "at least one"),
    ],
)
def test_bad_groups_are_refused(tmp_path: Path, groups: dict[str, Any], message: str) -> None:
    write(tmp_path, "a")
    with pytest.raises(InputError, match=message):
        open_set(tmp_path, ("null", "shirt", "coat"), groups=groups)


@pytest.mark.parametrize(
    ("classes", "void", "message"),
    [
        ([], (255,), "0 class names"),
        ([str(i) for i in range(256)], (255,), "256 class names: expected 1 to 255"),
        (["a", "b", "a"], (255,), r"\['a'\] occur twice"),
        (["a"], (256,), r"void values \[256\]"),
    ],
)
def test_bad_classes_are_refused(tmp_path: Path, classes: list[str], void: tuple[int, ...], message: str) -> None:
    write(tmp_path, "a")
    with pytest.raises(InputError, match=message):
        open_set(tmp_path, classes, void=void)


def test_class_files_are_names_or_numbered_names(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffnull\r\nt-shirt\r\n\r\ntraffic light\r\n".encode())
    assert read_classes(file) == ["null", "t-shirt", "traffic light"]
    file.write_text("1: traffic light\n0 sky\n2,car\n")
    assert read_classes(file) == ["sky", "traffic light", "car"]
    file.write_text("sky\n2 wheels\n")
    assert read_classes(file) == ["sky", "2 wheels"]


def test_class_files_are_read_by_the_set(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "classes.txt").write_text("0 sky\n1 road\n2 car\n")
    assert open_set(tmp_path, str(tmp_path / "classes.txt")).classes == ("sky", "road", "car")


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("0 a\n2 b\n", r"\[0, 2\]"), ("1 a\n1 b\n", r"\[1, 1\]")])
def test_bad_class_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_a_missing_class_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file at .*classes\.txt"):
        read_classes(tmp_path / "classes.txt")


def test_sets_reach_worker_processes(tmp_path: Path) -> None:
    write(tmp_path, "a")
    copy = pickle.loads(pickle.dumps(open_set(tmp_path)))
    np.testing.assert_array_equal(copy[0].label, [[0, 1, 2], [2, 2, VOID]])


def test_grey_values_stand_for_classes_when_told_which(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 255, 255], [0, 0, 255]], dtype=np.uint8))
    images = ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["ground", "roof"], values=[0, 255])
    np.testing.assert_array_equal(images[0].label, [[0, 1, 1], [0, 0, 1]])
    swapped = ImageLabelFolder(tmp_path / "images", tmp_path / "labels", ["roof", "ground"], values={0: "ground", 255: "roof"})
    assert swapped.classes == ("roof", "ground")
    np.testing.assert_array_equal(swapped[0].label, [[1, 0, 0], [1, 1, 0]])


def test_values_go_with_void_and_groups(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[10, 20, 30, 40, 0, 255]], dtype=np.uint8))
    named = {10: "wall", 20: "door", 30: "wall", 40: "tree"}
    options: dict[str, Any] = {"classes": ["tree", "wall", "door"], "values": named}
    np.testing.assert_array_equal(open_set(tmp_path, void=(0, 255), **options)[0].label, [[1, 2, 1, 0, VOID, VOID]])
    grouped = open_set(tmp_path, void=(0, 255), groups={"house": ["wall", "door"]}, **options)
    np.testing.assert_array_equal(grouped[0].label, [[1, 1, 1, 0, VOID, VOID]])
    with pytest.raises(InputError, match=r"a\.png.* 0: .*10, 20, 30, 40, 255"):
        open_set(tmp_path, void=None, **options)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0], r"got 1 values \[0\] for 2 classes"),
        ([0, 0], "each once"),
        ([0, 256], r"got the values \[256\]"),
        ({0: "ground", 255: "rof"}, "'rof': did you mean roof"),
        ({0: "ground"}, "no value for roof"),
    ],
)
def test_values_that_do_not_fit_the_classes_are_refused(tmp_path: Path, values: Any, message: str) -> None:
    write(tmp_path, "a")
    with pytest.raises(InputError, match=message):
        open_set(tmp_path, ["ground", "roof"], void=None, values=values)
    with pytest.raises(InputError, match=r"\[255\] are in `values` and in `void`"):
        open_set(tmp_path, ["ground", "roof"], void=(255,), values=[0, 255])


def test_masks_of_0_and_255_are_asked_about_and_not_trained_as_void(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path, name, np.array([[0, 255, 255]], dtype=np.uint8))
    folders = tmp_path / "images", tmp_path / "labels"
    with pytest.raises(InputError, match=r"0 and 255.*'roof'.*values: .*void: "):
        ImageLabelFolder(*folders, ["ground", "roof"])
    assert ImageLabelFolder(*folders, ["ground", "roof"], void=[255])[0].label is not None
    write(tmp_path, "b", np.array([[0, 1, 255]], dtype=np.uint8))
    np.testing.assert_array_equal(ImageLabelFolder(*folders, ["ground", "roof"])[1].label, [[0, 1, VOID]])


@pytest.mark.parametrize("mode", ["L", "1", "P", "white first", "RGB", "RGBA"])
def test_values_are_the_greys_that_one_sees_however_a_file_keeps_them(tmp_path: Path, mode: str) -> None:
    write(tmp_path, "a")
    grey = Image.fromarray(np.array([[0, 255, 255], [0, 0, 255]], dtype=np.uint8))
    if mode == "white first":
        saved = Image.fromarray(np.array([[1, 0, 0], [1, 1, 0]], dtype=np.uint8), mode="P")
        saved.putpalette([255, 255, 255, 0, 0, 0])
    else:
        saved = grey.convert(mode)
    saved.save(tmp_path / "labels" / "a.png")
    np.testing.assert_array_equal(
        open_set(tmp_path, ["ground", "roof"], void=None, values=[0, 255])[0].label, [[0, 1, 1], [0, 0, 1]]
    )
    if mode in ("RGB", "RGBA"):
        with pytest.raises(InputError, match=r"all that it shows is grey: set `values`"):
            open_set(tmp_path, ["ground", "roof"])[0]


def test_colours_are_no_greys(tmp_path: Path) -> None:
    write(tmp_path, "a")
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "labels" / "a.png")
    with pytest.raises(InputError, match=r"of mode RGB.*replace each colour"):
        open_set(tmp_path, ["ground", "roof"], void=None, values=[0, 255])[0]


def test_the_greys_of_a_gif_do_not_depend_on_the_order_of_its_palette(tmp_path: Path) -> None:
    for name, flip in (("a", False), ("b", True)):
        saved = Image.fromarray(np.array([[flip, not flip]], dtype=np.uint8), mode="P")
        saved.putpalette([255, 255, 255, 0, 0, 0] if flip else [0, 0, 0, 255, 255, 255])
        saved.save(tmp_path / f"{name}.gif")
    assert [read_label(tmp_path / f"{name}.gif").tolist() for name in "ab"] == [[[0, 255]], [[0, 255]]]


def test_a_file_that_counts_from_0_among_values_is_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 1]], dtype=np.uint8))
    with pytest.raises(InputError, match="leave out `values`"):
        open_set(tmp_path, ["ground", "roof"], void=None, values=[0, 255])[0]


def test_names_of_classes_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    write(tmp_path, "a", np.array([[0, 1, 1]], dtype=np.uint8))
    decomposed = [unicodedata.normalize("NFD", name) for name in ("hiver", "été")]
    images = open_set(tmp_path, decomposed, groups={"saison": ["été"]})
    np.testing.assert_array_equal(images[0].label, [[0, 1, 1]])
    (tmp_path / "classes.txt").write_text("\n".join(decomposed), encoding="utf-8")
    assert open_set(tmp_path, str(tmp_path / "classes.txt")).classes == ("hiver", "été")
    with pytest.raises(InputError, match=r"\['été'\] occur twice"):
        open_set(tmp_path, ["été", decomposed[1]])


@pytest.mark.parametrize("text", ["id,name\n0,sky\n1,road\n", "# my classes\nsky\nroad\n"])
def test_a_header_is_no_class(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=r"begins with .*remove that line"):
        read_classes(tmp_path / "classes.txt")


def test_a_class_file_in_utf_16_is_to_be_saved_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("sky\nroad\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"classes\.txt is not UTF-8.*save it anew"):
        read_classes(tmp_path / "classes.txt")
