"""Which files of a folder are read, and what is said of the others."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from img2img.data import build_data
from img2img.data.datasets.class_folder import ClassFolder
from img2img.data.images.decode import read_image
from img2img.data.images.listing import EXTENSIONS, list_images
from img2img.data.warn_once import collect_warnings
from img2img.errors import InputError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def image(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)


def listed(root: Path, **options: object) -> list[str]:
    return [p.relative_to(root).as_posix() for p in list_images(root, **options)]  # type: ignore[arg-type]


def test_images_are_listed_by_extension_and_sorted_by_path(tmp_path: Path) -> None:
    images = ("b.JPG", "a/z.jpeg", "a/c/x.webp", "a.TIFF", "c.tif", "d.bmp", "e.Png")
    for name in (*images, "f.txt", ".hidden.png", ".git/g.png", "no"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)]
    assert found == ["a.TIFF", "a/c/x.webp", "a/z.jpeg", "b.JPG", "c.tif", "d.bmp", "e.Png"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.png").touch()
    root = tmp_path / "set"
    root.mkdir()
    (root / "cats").symlink_to(tmp_path / "store")
    (root / "tigers").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert list_images(root) == [root / "cats" / "a.png"]


def test_a_missing_folder_names_the_nearest_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rf"no folder at x{os.sep}y \(the nearest that exists is {tmp_path}\)"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=expected):
        list_images(Path("x", "y"))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    with pytest.raises(InputError, match=r"a\.zip is a file"):
        list_images(tmp_path / "a.zip")


def test_an_empty_folder_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no image in .*\.txt: 1.*end in"):
        list_images(tmp_path)


EXTRA = ("jfif", "jpe", "gif", "apng", "avif", "dib", "jp2", "j2k", "ppm", "pgm", "tga", "pcx", "qoi")


@pytest.mark.parametrize("extension", EXTRA)
def test_what_pillow_decodes_by_itself_is_listed_and_read(tmp_path: Path, extension: str) -> None:
    if f".{extension}" not in Image.registered_extensions():
        pytest.skip("this Pillow does not know it")
    Image.new("L" if extension == "pgm" else "RGB", (16, 16), "white").save(tmp_path / f"a.{extension.upper()}")
    (path,) = list_images(tmp_path)
    assert (read_image(path) > 250).all()


def test_every_extension_is_one_that_pillow_knows() -> None:
    assert {".mpo"} >= EXTENSIONS - set(Image.registered_extensions())


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.heic", "c.HEIC", "d.xmp", "README", "Thumbs.db", "desktop.ini", ".DS_Store", "._a.jpg")
    with collect_warnings() as remarks:
        assert listed(tmp_path) == ["a.jpg"]
    (said,) = remarks
    assert f"{tmp_path}: 1 images; left out 4 other files (.heic: 2, " in said
    assert "no extension: 1" in said


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "Thumbs.db", "@eaDir/a.jpg")
    with collect_warnings() as remarks:
        assert listed(tmp_path) == ["a.jpg"]
    assert remarks == []


def test_outside_of_a_run_it_is_said_once_by_the_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "b.heic")
    with caplog.at_level(logging.WARNING, "img2img"):
        for _ in range(3):
            list_images(tmp_path)
    assert [r.getMessage().count(".heic: 1") for r in caplog.records] == [1]


SYSTEM = ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints", ".Trash-1000")


@pytest.mark.parametrize("folder", SYSTEM)
def test_folders_that_systems_make_are_not_read(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "a.jpg", f"{folder}/a.jpg", f"b/{folder}/c/b.jpg")
    assert listed(tmp_path) == ["a.jpg"]


def test_folders_that_systems_make_are_no_classes(tmp_path: Path) -> None:
    image(tmp_path, "cat/1.png", "dog/1.png", "cat/@eaDir/1.png", *(f"{folder}/1.png" for folder in SYSTEM))
    images = ClassFolder(root=tmp_path)
    assert images.classes == ("cat", "dog")
    assert len(images) == 2


def test_a_class_folder_counts_what_it_leaves_out_once_for_all_classes(tmp_path: Path) -> None:
    image(tmp_path, "cat/1.jfif", "cat/2.png", "dog/1.gif")
    touch(tmp_path, "cat/3.heic", "dog/2.heic", "dog/list.txt")
    with collect_warnings() as remarks:
        assert len(ClassFolder(root=tmp_path)) == 3
    (said,) = remarks
    assert "left out 3 other files (.heic: 2" in said


@pytest.mark.parametrize(
    "marks", ["progress.json", "bundle.json", "runs.jsonl", "results.json report.html", "summary.json index.html"]
)
def test_results_below_the_images_are_not_read(tmp_path: Path, marks: str) -> None:
    touch(tmp_path, *(f"runs/x/{mark}" for mark in marks.split()), "runs/x/images/a.png")
    touch(tmp_path, "a.jpg", "notes/results.json", "notes/b.png")
    with collect_warnings() as remarks:
        assert listed(tmp_path) == ["a.jpg", "notes/b.png"]
    assert f"{tmp_path / 'runs' / 'x'}, where results are" in remarks[0]
    assert listed(tmp_path / "runs" / "x") == ["images/a.png"], "what is asked for is read"


def test_a_folder_of_nothing_but_results_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "x/progress.json", "x/images/a.png")
    with pytest.raises(InputError, match=r"no image in .*x, where results are\)"):
        list_images(tmp_path)


def test_what_is_excluded_is_not_read_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "made/a.jpg", "other/a.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "made")
    for exclude in ("made", tmp_path / "made", Path("other", "..", "made"), "link"):
        assert listed(tmp_path, exclude=[exclude]) == ["a.jpg", "other/a.jpg"]
    assert [str(p) for p in list_images(".", exclude=["made"])] == ["a.jpg", "other/a.jpg"]
    assert listed(tmp_path / "made", exclude=["made"]) == ["a.jpg"], "what is asked for is read"


def test_data_leave_out_the_folder_that_results_go_to(tmp_path: Path) -> None:
    image(tmp_path, *(f"{i}.png" for i in range(10)), "out/images/a.png", "out/images/b.png")
    parts = build_data({"kind": "image_folder", "root": str(tmp_path)}, exclude=[tmp_path / "out"])
    assert sum(map(len, (parts.train, parts.val, parts.test))) == 10
    assert any("left out" in remark for remark in parts.train.warnings())
    labelled = {"kind": "class_folder", "root": str(tmp_path)}
    image(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    assert build_data(labelled | {"fractions": [0.5, 0.25, 0.25]}, exclude=[tmp_path / "out"]).classes == ("cat", "dog")


def test_a_folder_is_walked_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda folder, **options: (walks.append(str(folder)), walk(folder, **options))[1])
    (tmp_path / "sub").mkdir()
    for name in ("b.jpg", "sub/a.jpg", "sub/notes.txt"):
        (tmp_path / name).write_bytes(b"")

    def settled() -> None:
        for folder in (tmp_path, tmp_path / "sub"):
            os.utime(folder, (os.stat(folder).st_atime, os.stat(folder).st_mtime - 10))

    first = list_images(tmp_path)
    assert list_images(tmp_path) == first
    assert len(walks) == 2, "the folder has just changed: the next change may have the same time"
    settled()
    assert [list_images(tmp_path) for _ in range(3)] == [first] * 3
    assert len(walks) == 3
    list_images(tmp_path, exclude=[tmp_path / "sub"])
    assert len(walks) == 4, "other folders are left out"
    (tmp_path / "sub" / "c.jpg").write_bytes(b"")
    settled()
    assert [path.name for path in list_images(tmp_path)] == ["b.jpg", "a.jpg", "c.jpg"]
    assert len(walks) == 5
    (tmp_path / "sub" / "a.jpg").rename(tmp_path / "d.jpg")
    assert [path.name for path in list_images(tmp_path)] == ["b.jpg", "d.jpg", "c.jpg"]
    list_images(tmp_path).clear()
    assert len(list_images(tmp_path)) == 3, "each caller has a list of its own"


def test_a_relative_path_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, count in (("a", 3), ("b", 6)):
        image(tmp_path / folder / "photos", *(f"{i}.png" for i in range(count)))
        os.utime(tmp_path / folder / "photos", ns=(0, 10**9))
    for folder, count in (("a", 3), ("b", 6), ("a", 3)):
        monkeypatch.chdir(tmp_path / folder)
        assert len(list_images("photos")) == count
        assert len(list_images("photos")) == count
