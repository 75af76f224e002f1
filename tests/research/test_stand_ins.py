"""Stand-ins for the official folders: the layouts that the pipelines read, with nothing both learned from and tested on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import run_script

from img2img.data.datasets.cifar100 import CLASSES
from img2img.data.datasets.class_folder import ClassFolder
from img2img.data.datasets.decathlon import DECATHLON, Decathlon

FOLDERS = ("cubs_cropped", "stanford_cars_cropped", "flowers", "wikiart", "sketches")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The five sources, as small as their layouts allow. No two images are equal."""
    root, rng = tmp_path / "data", np.random.default_rng(0)

    def save(array: np.ndarray, *parts: str) -> None:
        file = root.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(file)

    (root / "cifar100").mkdir(parents=True)
    (root / "mnist" / "MNIST" / "raw").mkdir(parents=True)
    for part, idx, count in (("train", "train", 2), ("test", "t10k", 4)):
        labels = np.repeat(np.arange(100), count)
        np.savez(
            root / "cifar100" / f"{part}.npz",
            x=rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8),
            y=labels,
            classes=np.array(CLASSES),
        )
        digits = rng.integers(0, 256, (10 * count, 28, 28), dtype=np.uint8)
        header = b"".join(n.to_bytes(4) for n in (2051, len(digits), 28, 28))
        raw = root / "mnist" / "MNIST" / "raw"
        (raw / f"{idx}-images-idx3-ubyte").write_bytes(header + digits.tobytes())
        header = b"".join(n.to_bytes(4) for n in (2049, len(digits)))
        (raw / f"{idx}-labels-idx1-ubyte").write_bytes(header + bytes(i % 10 for i in range(len(digits))))
        for domain in ("photo", "art_painting", "cartoon", "sketch"):
            for name in ("dog", "house"):
                for i in range(count):
                    save(rng.integers(0, 256, (40, 40, 3)), "pacs", domain, part, name, f"{i}.png")
        for i in range(count):
            save(rng.integers(0, 256, (120, 160, 3)), "camvid", part, f"{i}.png")
            label = np.zeros((120, 160))
            for value, (top, left) in {1: (5, 5), 5: (5, 60), 6: (5, 110), 7: (60, 5), 8: (60, 60), 10: (60, 110)}.items():
                label[top : top + 20, left : left + 25] = value
            label[90:115, 5:25] = 9  # a pedestrian
            label[90:95, 60:65] = 8  # a car that is too small to be cut out
            save(label, "camvid", f"{part}annot", f"{i}.png")
    (root / "ccp").mkdir()
    (root / "ccp" / "labels.txt").write_text("null\ncoat\ndress\npants\nshirt\nshoes\nskirt\nbag\nhair\n")
    for i in range(10):
        save(rng.integers(0, 256, (200, 100, 3)), "ccp", "photos", f"{i}.jpg")
        label = np.zeros((200, 100))
        for value in range(1, 9):
            row, column = divmod(value - 1, 2)
            label[5 + 45 * row : 35 + 45 * row, 5 + 45 * column : 40 + 45 * column] = value
        save(label, "ccp", "labels", f"{i}.png")
    return root


def test_both_benchmarks_find_their_layouts(data: Path, tmp_path: Path) -> None:
    to = tmp_path / "new" / "stand_ins"
    done = run_script("stand_ins", data, to)
    assert done.code == 0, done.stderr
    for name in FOLDERS:
        train, test = (ClassFolder(root=to / name / part) for part in ("train", "test"))
        assert train.classes == test.classes
        assert not _pixels(train) & _pixels(test)
    cubs = ClassFolder(root=to / "cubs_cropped" / "train")
    assert len(cubs) == 8 * 8, "eight of ten photographs"
    assert cubs[0].image.shape == (36, 41, 3), "30 x 35 pixels and a tenth on each side"
    for name in DECATHLON:
        train, val, test = (Decathlon(root=to, dataset=name, part=part) for part in ("train", "val", "test"))  # type: ignore[arg-type]
        assert train.classes == val.classes == test.classes
        assert set(val.categories) == set(range(len(val.classes))), "every class"
        assert set(test.categories) == {-1}, "the server's secret"
        assert not _pixels(train) & (_pixels(val) | _pixels(test)), name
        assert not _pixels(val) & _pixels(test), name
        assert min(train[0].image.shape[:2]) == 72
    things = Decathlon(root=to, dataset="gtsrb", part="train")
    assert np.bincount(things.categories).tolist() == [2] * 6, "one of each in two scenes; none of the small cars"
    text = (to / "STAND-INS.md").read_text()
    assert all(f"`{name}`" in text for name in (*FOLDERS, *DECATHLON))


def test_what_is_there_stays_and_nothing_is_left_of_a_failure(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    assert "exists: expected a folder that is new" in run_script("stand_ins", data, kept).stderr
    (data / "ccp" / "labels.txt").unlink()
    done = run_script("stand_ins", data, tmp_path / "to")
    assert (done.code, "labels.txt" in done.stderr) == (1, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "kept"]


def _pixels(images: ClassFolder | Decathlon) -> set[bytes]:
    return {images[i].image.tobytes() for i in range(len(images))}
