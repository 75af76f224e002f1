"""Stand-ins for ImageNet-to-Sketch and the Visual Decathlon: other images in the official layouts.

    python pipelines/stand_ins.py DATA TO
    python pipelines/imagenet_to_sketch.py experiment=imagenet_to_sketch_stand_ins data_root=TO backbone.weights=FILE
    python pipelines/decathlon.py experiment=decathlon_stand_ins data_root=TO

Both benchmarks then run from files to score without their data. DATA holds `cifar100`, `mnist`, `pacs`, `ccp` and `camvid`, as
the guides have them. TO gets `cubs_cropped`, `stanford_cars_cropped`, `flowers`, `wikiart` and `sketches`, `decathlon-1.0`, and
STAND-INS.md, which says what stands for what. Accuracies on them say nothing of the real sets: there are five to ten classes
where CUBS has 200.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from skimage.measure import label, regionprops

from img2img.data.base import ImageDataset
from img2img.data.datasets.cifar100 import SUPERCLASSES, Cifar100
from img2img.data.datasets.class_folder import ClassFolder
from img2img.data.datasets.folder import ImageLabelFolder
from img2img.data.datasets.label_table import read_classes
from img2img.data.datasets.mnist import Mnist
from img2img.errors import InputError
from img2img.files.atomic import replace_folder, temporary_beside
from img2img.files.json_files import write_json
from img2img.files.paths import expanded

Pixels = NDArray[np.uint8]
Source = Callable[[str], Iterable[tuple[str, Pixels]]]
"""`source(part)`, part "train" or "test": the class and the pixels of each image, (H, W, 3)."""

PER_CLASS = {"train": 100, "test": 40}
"""At most so many images of a class, spread evenly over the source: neighbours in a video are much alike."""

GARMENTS = ("coat", "dress", "pants", "shirt", "shoes", "skirt", "bag", "hair")
STREET = ("building", "tree", "sign", "fence", "car", "bicyclist")
STREET_CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
OF_CIFAR100 = ("large_carnivores", "insects", "reptiles", "people")
"""The superclasses that stand for the Decathlon's CIFAR-100; flowers stand for flowers, the other fifteen for ImageNet."""

SHORT_SIDE = 72
"""Pixels of the shorter side of the Decathlon's images."""

TRAINING_SHARE = 0.8
"""Of the photographs of Clothing Co-Parsing, which has no parts; the garments of the others are for testing."""


def main(arguments: list[str]) -> None:
    """Write the folder; what was there stays, and is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=expanded, help="the folder with cifar100, mnist, pacs, ccp and camvid")
    parser.add_argument("to", type=expanded, help="the folder to make")
    options = parser.parse_args(arguments)
    try:
        if options.to.exists():
            raise InputError(f"{options.to} exists: expected a folder that is new; remove it or name another")
        write_stand_ins(options.data, options.to)
    except InputError as error:
        sys.exit(f"error: {error}")


def write_stand_ins(data: Path, to: Path) -> None:
    """Make the folder `to` of the datasets in `data`, whole or not at all.

    Raises:
        InputError: a dataset is missing in `data` or damaged.
    """
    folders = {
        "cubs_cropped": ("garments cut from Clothing Co-Parsing", garments(data)),
        "stanford_cars_cropped": ("the vehicles of CIFAR-100", cifar(data, "vehicles_1", "vehicles_2")),
        "flowers": ("the flowers of CIFAR-100", cifar(data, "flowers")),
        "wikiart": ("paintings of PACS", pacs(data, "art_painting")),
        "sketches": ("sketches of PACS", pacs(data, "sketch")),
    }
    others = [name for name in SUPERCLASSES if name not in (*OF_CIFAR100, "flowers")]
    decathlon = {
        "imagenet12": ("fifteen superclasses of CIFAR-100", cifar(data, *others)),
        "aircraft": ("photographs of PACS", pacs(data, "photo")),
        "cifar100": ("four superclasses of CIFAR-100", cifar(data, *OF_CIFAR100)),
        "daimlerpedcls": ("pedestrians of CamVid, and cuts without one", pedestrians(data)),
        "dtd": ("garments cut from Clothing Co-Parsing", garments(data)),
        "gtsrb": ("things cut from CamVid's streets", street_things(data)),
        "omniglot": ("sketches of PACS", pacs(data, "sketch")),
        "svhn": ("digits of MNIST", digits(data)),
        "ucf101": ("cartoons of PACS", pacs(data, "cartoon")),
        "vgg-flowers": ("the flowers of CIFAR-100", cifar(data, "flowers")),
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    made = temporary_beside(to)
    try:
        for name, (_, source) in track(folders.items(), "ImageNet-to-Sketch"):
            write_class_folders(made / name, source)
        for number, (name, (_, source)) in enumerate(track(decathlon.items(), "Decathlon"), start=1):
            write_decathlon(made / "decathlon-1.0", name, number, source)
        lines = [f"- `{name}`: {what}\n" for name, (what, _) in {**folders, **decathlon}.items()]
        text = "# Stand-ins\n\nNone of these folders holds the dataset that it is named after:\n\n"
        (made / "STAND-INS.md").write_text(text + "".join(lines), encoding="utf-8")
        replace_folder(made, to)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


# ---------------------------------------------------------------------- the official layouts


def write_class_folders(folder: Path, source: Source) -> None:
    """ImageNet-to-Sketch's layout: `train/CLASS/N.png` and `test/CLASS/N.png`."""
    for part in PER_CLASS:
        for i, (name, pixels) in enumerate(_at_most(source, part)):
            file = folder / part / name / f"{i:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


def write_decathlon(root: Path, dataset: str, number: int, source: Source) -> None:
    """One dataset in the Decathlon's layout: three annotation files, and images whose shorter side is 72 pixels.

    Every other test image is in the official validation part; the rest are the test part, whose file has no categories.
    """
    train, test = (list(_at_most(source, part)) for part in PER_CLASS)
    parts = {"train": train, "val": test[0::2], "test": test[1::2]}
    ids = {name: number * 10_000_000 + i for i, name in enumerate(sorted({name for name, _ in train}), start=1)}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    image_id = number * 10_000_000
    for part, examples in parts.items():
        folder = root / "data" / dataset / part
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, pixels in examples:
            image_id += 1
            picture = _short_side(Image.fromarray(pixels), SHORT_SIDE)
            picture.save(folder / f"{image_id}.png")
            file = f"data/{dataset}/{part}/{image_id}.png"
            images.append({"id": image_id, "file_name": file, "width": picture.width, "height": picture.height})
            annotations.append({"id": image_id, "image_id": image_id, "category_id": ids[name]})
        content: dict[str, Any] = {
            "info": {"description": "a stand-in, see STAND-INS.md"},
            "images": images,
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        }
        if part != "test":
            content["annotations"] = annotations
        write_json(root / "annotations" / f"{dataset}_{'test_stripped' if part == 'test' else part}.json", content)


def _at_most(source: Source, part: str) -> Iterator[tuple[str, Pixels]]:
    """At most `PER_CLASS` images of each class, class by class."""
    of_class: dict[str, list[Pixels]] = {}
    for name, pixels in source(part):
        of_class.setdefault(name, []).append(pixels)
    for name, images in of_class.items():
        count = min(len(images), PER_CLASS[part])
        for i in range(count):
            yield name, images[i * len(images) // count]


def _short_side(picture: Image.Image, side: int) -> Image.Image:
    scale = side / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)


# ---------------------------------------------------------------------- where the images come from


def cifar(data: Path, *superclasses: str) -> Source:
    """The classes of some superclasses of CIFAR-100."""
    numbers = [list(SUPERCLASSES).index(name) + 1 for name in superclasses]
    return lambda part: _of_classes(Cifar100(root=data / "cifar100", part=part, number=n) for n in numbers)  # type: ignore[arg-type]


def pacs(data: Path, domain: str) -> Source:
    """A domain of PACS."""
    return lambda part: _of_classes([ClassFolder(root=data / "pacs" / domain / part)])


def digits(data: Path) -> Source:
    """MNIST."""
    return lambda part: _of_classes([Mnist(root=data / "mnist", part=part)])  # type: ignore[arg-type]


def garments(data: Path) -> Source:
    """Garments cut out of the photographs of Clothing Co-Parsing."""

    def found(part: str) -> Iterator[tuple[str, Pixels]]:
        ccp = data / "ccp"
        photos = ImageLabelFolder(ccp / "photos", ccp / "labels", read_classes(ccp / "labels.txt"))
        for i in range(len(photos)):
            if (i < TRAINING_SHARE * len(photos)) == (part == "train"):
                yield from _cut_out(photos, i, GARMENTS, side=24)

    return found


def street_things(data: Path) -> Source:
    """Things cut out of CamVid's street scenes."""

    def found(part: str) -> Iterator[tuple[str, Pixels]]:
        streets = _streets(data, part)
        for i in range(len(streets)):
            yield from _cut_out(streets, i, STREET, side=16)

    return found


def pedestrians(data: Path) -> Source:
    """Pedestrians of CamVid's street scenes, and as many cuts of the same sizes in which nobody is."""

    def found(part: str) -> Iterator[tuple[str, Pixels]]:
        streets, rng = _streets(data, part), np.random.default_rng(0)
        person = STREET_CLASSES.index("pedestrian")
        for i in range(len(streets)):
            sample = streets[i]
            assert sample.label is not None
            for name, pixels in _cut_out(streets, i, ("pedestrian",), side=16):
                yield name, pixels
                h, w = pixels.shape[:2]
                for _ in range(20):
                    top, left = rng.integers(sample.label.shape[0] - h + 1), rng.integers(sample.label.shape[1] - w + 1)
                    if not (sample.label[top : top + h, left : left + w] == person).any():
                        yield "no pedestrian", sample.image[top : top + h, left : left + w]
                        break

    return found


def _streets(data: Path, part: str) -> ImageLabelFolder:
    camvid = data / "camvid"
    return ImageLabelFolder(camvid / part, camvid / f"{part}annot", STREET_CLASSES, void=[len(STREET_CLASSES)])


def _of_classes(datasets: Iterable[ImageDataset]) -> Iterator[tuple[str, Pixels]]:
    """All images of datasets whose images have classes."""
    for dataset in datasets:
        for i in range(len(dataset)):
            sample = dataset[i]
            assert sample.category is not None
            yield dataset.classes[sample.category], sample.image


def _cut_out(photos: ImageLabelFolder, index: int, names: Iterable[str], *, side: int) -> Iterator[tuple[str, Pixels]]:
    """The connected regions of some classes in a photograph, with a tenth of their size around; none below `side` pixels."""
    sample = photos[index]
    assert sample.label is not None
    for name in names:
        for region in regionprops(label(sample.label == photos.classes.index(name))):
            top, left, bottom, right = region.bbox
            if min(bottom - top, right - left) < side:
                continue
            y, x = (bottom - top) // 10, (right - left) // 10
            yield name, sample.image[max(0, top - y) : bottom + y, max(0, left - x) : right + x]


if __name__ == "__main__":
    main(sys.argv[1:])
