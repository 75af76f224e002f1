import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from img2img.data import build_data
from img2img.data.datasets.class_folder import ClassFolder, listed
from img2img.errors import InputError

FILES = (
    "train/dog/b.jpg",
    "train/dog/a.png",
    "train/cat/deep/er/1.JPEG",
    "train/Zebra 2/x.jpg",
    "test/dog/1.jpg",
    "test/cat/2.jpg",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(FILES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 10), (40 * i, 0, 0)).save(tmp_path / name, quality=95)
    return tmp_path


def test_folders_are_classes_as_in_torchvision(root: Path) -> None:
    for hidden in ("train/.cache/x.jpg", "train/dog/.x.jpg", "train/notes.txt"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"")
    images = ClassFolder(root=root / "train")
    (root / "train/dog/.x.jpg").unlink()  # torchvision would take it for an image
    (root / "train/.cache/x.jpg").unlink()
    (root / "train/.cache").rmdir()
    theirs = ImageFolder(str(root / "train"))
    assert images.classes == ("Zebra 2", "cat", "dog") == tuple(theirs.classes)
    assert len(images) == 4
    assert [str(root / "train" / s.name) for s in images] == [path for path, _ in theirs.samples]
    assert [s.category for s in images] == theirs.targets == images.categories.tolist() == [0, 1, 2, 2]
    assert images[2].image.shape == (10, 21, 3)
    assert images.categories.dtype == np.int64
    assert images.name == f"{root.name}-train"


def test_images_are_not_decoded_before_they_are_asked_for(root: Path) -> None:
    (root / "train/cat/deep/er/1.JPEG").write_bytes(b"\xff\xd8\xff")
    images = ClassFolder(root=root / "train")
    assert images[0].category == 0
    with pytest.raises(InputError, match=r"1\.JPEG"):
        images[1]


def test_given_classes_set_the_order_and_may_lack_a_folder(root: Path) -> None:
    train = ClassFolder(root=root / "train")
    assert ClassFolder(root=root / "test").classes != train.classes
    test = ClassFolder(root=root / "test", classes=train.classes)
    assert test.classes == train.classes
    assert [(s.name, s.category) for s in test] == [("cat/2.jpg", 1), ("dog/1.jpg", 2)]
    assert [s.category for s in ClassFolder(root=root / "test", classes=["dog", "cat"])] == [0, 1]


def test_a_class_that_is_not_listed_is_an_error(root: Path) -> None:
    with pytest.raises(InputError, match=r"Zebra 2.*`classes`.*mean zebra"):
        ClassFolder(root=root / "train", classes=["cat", "dog", "zebra"])
    with pytest.raises(InputError, match=r"\['cat'\] are listed twice"):
        ClassFolder(root=root / "test", classes=["cat", "dog", "cat"])


def test_the_folder_above_the_parts_and_one_without_classes_say_the_layout(root: Path) -> None:
    with pytest.raises(InputError, match=r"'test', 'train'.*CLASS.*ROOT/train"):
        ClassFolder(root=root)
    with pytest.raises(InputError, match=r"no folder.*for each class"):
        ClassFolder(root=root / "train" / "dog")
    with pytest.raises(InputError, match="no folder at"):
        ClassFolder(root=root / "gone")


def test_a_class_without_a_image_is_named(root: Path) -> None:
    (root / "train/owl").mkdir()
    (root / "train/owl/readme.md").write_text("none yet")
    with pytest.raises(InputError, match=r"no image in .*owl.*\.md: 1"):
        ClassFolder(root=root / "train")


def test_sets_reach_worker_processes(root: Path) -> None:
    copy = pickle.loads(pickle.dumps(ClassFolder(root=root / "train")))
    assert copy[3].category == 2


def test_a_folder_is_listed_once_until_it_changes(root: Path) -> None:
    for folder in (root / "train", *(root / "train").rglob("*")):
        os.utime(folder, ns=(0, 10**9))  # what has changed a moment ago is read again: it may change within the same tick
    first = listed(root / "train")
    assert listed(str(root / "train")) is first
    (root / "train/dog/more").mkdir()
    Image.new("RGB", (4, 4)).save(root / "train/dog/more/deep.png")
    assert len(listed(root / "train")) == len(first) + 1
    for folder in (root / "train/dog/more", root / "train/dog"):
        os.utime(folder, ns=(0, 10**9))
    first = listed(root / "train")
    Image.new("RGB", (4, 4)).save(root / "train/dog/more/deeper.png")
    assert len(listed(root / "train")) == len(first) + 1
    first = listed(root / "train")
    Image.new("RGB", (4, 4)).save(root / "train/dog/new.png")
    os.utime(root / "train/dog", ns=(0, 1))  # a second image within one tick of the clock would go unseen
    assert len(listed(root / "train")) == len(first) + 1


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_is_found_in_whichever_unicode_form_its_folder_has(tmp_path: Path, form: str) -> None:
    for folder, red in (("hiver", 1), (unicodedata.normalize(form, "été"), 2)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (2, 2), (red, 0, 0)).save(tmp_path / folder / f"{red}.png")
    images = ClassFolder(root=tmp_path)
    assert images.classes == ("hiver", "été")
    assert [(s.category, int(s.image[0, 0, 0])) for s in images] == [(0, 1), (1, 2)]
    named = ClassFolder(root=tmp_path, classes=[unicodedata.normalize("NFD", "été"), "hiver"])
    assert named.classes == ("été", "hiver")
    assert [(s.category, int(s.image[0, 0, 0])) for s in named] == [(0, 2), (1, 1)]


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "été")).mkdir()
    with pytest.raises(InputError, match="two folders of the name 'été'"):
        ClassFolder(root=tmp_path)


def test_images_beside_the_folders_are_counted_aloud(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (2, 2)).save(root / "train" / "stray.png")
    assert len(ClassFolder(root=root / "train")) == 4
    assert "1 images in" in caplog.text
    assert "stray.png" in caplog.text


def test_folders_of_parts_or_of_domains_are_no_classes(root: Path, tmp_path: Path) -> None:
    (root / "Annotations").mkdir()
    Image.new("RGB", (2, 2)).save(root / "Annotations" / "x.png")
    with pytest.raises(InputError, match="give the folder of one part"):
        ClassFolder(root=root)
    for domain in ("photo", "sketch"):
        for part in ("train", "test"):
            (tmp_path / "domains" / domain / part / "dog").mkdir(parents=True)
    with pytest.raises(InputError, match="give the folder of one part"):
        ClassFolder(root=tmp_path / "domains")


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_a_folder_of_runs_beside_the_classes_is_none(tmp_path: Path, classes: list[str] | None) -> None:
    out = tmp_path / "runs" / "first"
    for folder in (tmp_path / "a", tmp_path / "b", out):
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    options = {"kind": "class_folder", "root": str(tmp_path), **({} if classes is None else {"classes": classes})}
    for other in (out, tmp_path / "elsewhere"):
        parts = build_data(options, exclude=[other])
        assert parts.classes == ("a", "b")
        assert sum(map(len, (parts.train, parts.val, parts.test))) == 12
        assert any(f"left out {out}, where results are" in said for said in parts.train.warnings())
        (out / "progress.json").touch()  # known by itself from then on
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no image in .*empty"):
        build_data(options)
