"""The poster's own experiment as it is configured, small, on made samples in the true formats of its datasets."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

import img2img
from img2img import InputError
from img2img.api import run
from img2img.backbones import build_backbone
from img2img.bundle import HEAD
from img2img.data import VOID, build_data
from img2img.data.datasets.voc import VOC_CLASSES
from img2img.masks import MaskedNetwork
from img2img.training.compose import compose

CONFIGS = Path(__file__).parents[2] / "configs"
SEQUENCE = ["coco", "voc", "colour", "gogh", "munch", "handbags"]
COCO_IDS = {
    name: i
    for i, name in enumerate(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
"""The official ids by name, 1 to 90 with ten gaps, as torchvision's detectors count."""

# Nothing but size. The network of the style loss has random weights, since nothing is downloaded.
SMALL = [
    "backbone.width=4",
    "backbone.blocks=1",
    "train.steps=4",
    "tasks.coco.train.steps=4",
    "train.augmentation.crop=32",
    "train.batch_size=2",
    "train.validation.every=2",
    "train.log_every=2",
    "train.schedule.warmup=0",
    "train.validation.precise_bn_batches=2",
    "train.workers=0",
    "evaluation.panels=1",
    "device.accelerator=cpu",
    *(f"tasks.{name}.data.resize=32" for name in SEQUENCE),
    *(f"tasks.{name}.data.fractions=[0.75,0.25]" for name in SEQUENCE),
    *(f"+tasks.{name}.task.size=32" for name in ("gogh", "munch")),
    *(f"tasks.{name}.task.network={{name:efficientnet_lite0,weights:null}}" for name in ("gogh", "munch")),
]


def _scene(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A rectangle before a plain ground, and where it is."""
    colours = [tuple(c) for c in rng.integers(0, 256, (2, 3)).tolist()]
    x, y = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    box = (x, y, x + width // 3, y + height // 3)
    save_image = Image.new("RGB", (width, height), colours[0])
    ImageDraw.Draw(save_image).rectangle(box, fill=colours[1])
    return save_image, box


def _polygon(box: tuple[int, int, int, int]) -> list[float]:
    left, top, right, bottom = box
    return [left + 0.5, top + 0.25, right + 0.5, top + 0.25, right + 0.5, bottom + 0.75, left + 0.5, bottom + 0.75]


def _write_coco(root: Path, part: str, count: int, rng: np.random.Generator) -> None:
    """`count` images and their instance file: polygons of one or two parts or without an area, a crowd, an empty one."""
    (root / f"{part}2017").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        identity, (width, height) = 139 + 7 * i, [(640, 480), (427, 640), (500, 375)][i % 3]
        save_image, box = _scene(rng, width, height)
        if i == 1:
            save_image = save_image.convert("L")  # some of COCO's photographs are grey files
        save_image.save(root / f"{part}2017" / f"{identity:012}.jpg")
        images.append(
            {"license": 3, "file_name": f"{identity:012}.jpg", "coco_url": "", "height": height, "width": width}
            | {"date_captured": "2013-11-21 01:34:01", "flickr_url": "", "id": identity}
        )
        if i == 2:
            continue  # a thousand images of train2017 have no annotation
        category = list(COCO_IDS.values())[(13 * i) % 80]
        far = (0, height - 20, 30, height - 5)
        regions: list[tuple[Any, int, int]] = [([_polygon(box), _polygon(far)], category, 0), ([_polygon(box)], 90, 0)]
        # annotation 918 of train2017 has no area
        regions.append(([[296.65, 88.33, 296.65, 88.33, 297.68, 88.33, 297.68, 88.33]], 58, 0))
        zeros = (width - 10) * height
        regions.append(({"counts": [zeros, 10 * height], "size": [height, width]}, 1, 1))
        annotations += [
            {"segmentation": s, "area": 0.0, "iscrowd": crowd, "image_id": identity, "bbox": [0, 0, 1, 1], "category_id": c}
            for s, c, crowd in regions
        ]
    categories = [{"supercategory": "thing", "id": i, "name": name} for name, i in COCO_IDS.items()]
    file = {"info": {"year": 2017}, "licenses": [], "images": images[::-1], "categories": categories}
    file["annotations"] = [a | {"id": 900 + i} for i, a in enumerate(annotations)]
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(file))


def _voc_palette() -> list[int]:
    """The colours of the label files: the bits of a label, the lowest three first, are the high bits of red, green and blue."""
    colours = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):
            colours[label, bit % 3] |= ((label >> bit) & 1) << (7 - bit // 3)
    return colours.ravel().tolist()


def _write_voc(year: Path, lists: dict[str, int], rng: np.random.Generator) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "Annotations", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    for split, count in lists.items():
        names = [f"2007_{rng.integers(0, 1_000_000):06}" for _ in range(count)]
        (year / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            save_image, (left, top, right, bottom) = _scene(rng, 500, 375)
            save_image.save(year / "JPEGImages" / f"{name}.jpg")
            label = np.zeros((375, 500), np.uint8)
            label[max(top - 3, 0) : bottom + 4, max(left - 3, 0) : right + 4] = VOID
            label[top : bottom + 1, left : right + 1] = 1 + (i * 7) % 20
            image = Image.fromarray(label, mode="P")
            image.putpalette(_voc_palette())
            image.save(year / "SegmentationClass" / f"{name}.png")


def _write_handbags(root: Path, counts: dict[str, int], rng: np.random.Generator) -> None:
    """Pairs of 512 x 256: dark outlines on white on the left, the coloured thing on the right."""
    for part, count in counts.items():
        (root / part).mkdir(parents=True)
        for i in range(1, count + 1):
            pair = Image.new("RGB", (512, 256), "white")
            bag = Image.new("RGB", (256, 256), "white")
            left, top = rng.integers(20, 80, 2).tolist()
            box = (left, top, left + 130, top + 110)
            ImageDraw.Draw(pair).rectangle(box, outline="black")
            ImageDraw.Draw(bag).rectangle(box, fill=tuple(rng.integers(0, 200, 3).tolist()))
            pair.paste(bag, (256, 0))
            pair.save(root / part / f"{i}_AB.jpg")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the official downloads unpack to, with a few made images each, and two paintings."""
    root, rng = tmp_path_factory.mktemp("DATA"), np.random.default_rng(0)
    _write_coco(root / "coco", "train", 8, rng)
    _write_coco(root / "coco", "val", 4, rng)
    _write_voc(root / "VOCdevkit" / "VOC2012", {"train": 4, "val": 2}, rng)
    _write_handbags(root / "edges2handbags", {"train": 4, "val": 2}, rng)
    (root / "styles").mkdir()
    for name in ("van_gogh_starry_night", "munch_the_scream"):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(root / "styles" / f"{name}.jpg")
    return root


def _config(data_root: Path | str, out: Path | str, *overrides: str) -> dict[str, Any]:
    """`experiment=poster` as the pipeline composes it."""
    composed = compose("image_to_image", ["experiment=poster", f"data_root={data_root}", f"out={out}", *overrides])
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    del config["data_root"]  # other keys refer to it
    return {str(k): v for k, v in config.items()}


@dataclass(frozen=True)
class Learned:
    """A finished run: its folder and results, and the first two tasks' outputs before the other four were learned."""

    folder: Path
    results: dict[str, Any]
    before: dict[str, torch.Tensor]


def _outputs(folder: Path) -> dict[str, torch.Tensor]:
    """The first two tasks' predictions for a made image, by the network on disk."""
    model, pixels = img2img.load(str(folder)), np.random.default_rng(1).integers(0, 256, (48, 40, 3)).astype(np.uint8)
    return {name: model.predict(name, pixels) for name in ("coco", "voc")}


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """The whole sequence, learned in two runs of which the second goes on from the first."""
    folder = tmp_path_factory.mktemp("runs") / "poster"
    run(_config(data, folder, *SMALL, "sequence=[coco,voc]"))
    before = _outputs(folder)
    return Learned(folder, run(_config(data, folder, *SMALL)), before)


def test_all_six_tasks_are_learned_in_the_posters_order(learned: Learned) -> None:
    folder, results = learned.folder, learned.results
    assert [t["name"] for t in results["tasks"]] == SEQUENCE
    kinds = ["segmentation", "segmentation", "colourisation", "style", "style", "edges"]
    assert [t["kind"] for t in results["tasks"]] == kinds
    assert {name: task.kind for name, task in img2img.load(str(folder)).tasks.items()} == dict(zip(SEQUENCE, kinds, strict=True))
    assert results["backbone"]["name"] == "image_transformer"
    assert results["method"] == "piggyback"
    assert results["method_options"]["granularity"] == "element"
    assert (folder / "report.html").stat().st_size > 0


def test_results_json_has_the_figures_of_the_posters_table(learned: Learned) -> None:
    folder, results = learned.folder, learned.results
    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert [t["primary_metric"] for t in stored["tasks"]] == ["mIoU", "mIoU", "ab error", *["total style loss"] * 2, "MSE"]
    poster = ["mIoU", "mIoU", "SSIM", "SSIM", "total style loss", "MSE"]
    for task, figure in zip(stored["tasks"], poster, strict=True):
        assert isinstance(task["metrics"][figure], float), f"{task['name']} lacks the poster's {figure}"
        assert task["metrics"][task["primary_metric"]] == task["value"]
    assert -1 <= stored["tasks"][2]["metrics"]["SSIM"] <= 1
    assert [t["test_images"] for t in stored["tasks"]] == [4, 2, 4, 4, 4, 2], "the whole official validation sets"
    # Its rows "Task 1 after Task 2" and so on, and its model sizes.
    matrix = stored["forgetting"]["value_matrix"]
    assert [[v is None for v in row] for row in matrix] == [[i > t for i in range(6)] for t in range(6)]
    assert stored["backbone"]["bytes"] > 0
    assert all(t["bytes"] > 0 for t in stored["tasks"])


def test_the_mse_of_the_edge_task_is_that_of_the_right_halves_drawn_from_the_left(learned: Learned, data: Path) -> None:
    folder, results = learned.folder, learned.results
    model, errors = img2img.load(str(folder)), []
    for file in sorted((data / "edges2handbags" / "val").glob("*.jpg")):
        with Image.open(file) as pair:
            halves = [pair.crop((x, 0, x + 256, 256)).resize((32, 32), Image.Resampling.LANCZOS) for x in (0, 256)]
        edges, photo = (np.array(half) for half in halves)
        painted = model.predict("handbags", edges).permute(1, 2, 0).numpy() * 255
        errors.append(np.mean((painted - photo) ** 2))
    assert results["tasks"][5]["value"] == pytest.approx(np.mean(errors), rel=1e-3)


def test_nothing_is_forgotten(learned: Learned) -> None:
    results, before = learned.results, learned.before
    assert results["forgetting"]["max_abs_output_change"] == 0.0
    matrix = results["forgetting"]["value_matrix"]
    assert all(matrix[t][i] == matrix[i][i] for t in range(6) for i in range(t))
    after = _outputs(learned.folder)
    assert all(torch.equal(after[name], before[name]) for name in before), "bit for bit, through files and a fresh network"


def test_masks_start_dense_or_half_dense_as_the_method_says(learned: Learned, data: Path, tmp_path: Path) -> None:
    assert all(t["density"] > 0.9 for t in learned.results["tasks"][1:])
    half = run(_config(data, tmp_path / "run", *SMALL, "method=piggyback_uniform", "sequence=[voc,colour]"))
    assert half["tasks"][1]["density"] == pytest.approx(0.5, abs=0.05)


def test_the_whole_network_has_the_posters_size() -> None:
    options = {k: v for k, v in _config("DATA", "out")["backbone"].items() if k != "mode"}
    backbone = build_backbone({**options, "out_channels": 3})
    assert sum(p.numel() for p in backbone.parameters()) * 4 / 1e6 == pytest.approx(56.4, abs=0.05)
    masked = MaskedNetwork(backbone, head=HEAD).masked_weights()
    assert sum(w.numel() for w in masked.values()) / 8 / 1e6 == pytest.approx(1.8, abs=0.05)


def test_the_parts_are_the_official_ones_with_val_cut_from_train(data: Path) -> None:
    tasks = _config(data, "out", *SMALL)["tasks"]
    for name, (train, val, test) in {"coco": (5, 2, 4), "voc": (3, 1, 2), "colour": (6, 2, 4), "handbags": (3, 1, 2)}.items():
        parts = build_data(tasks[name]["data"])
        assert (len(parts.train), len(parts.val), len(parts.test)) == (train, val, test), name
        files = [[part[i].name for i in range(len(part))] for part in (parts.train, parts.val)]
        assert not set(files[0]) & set(files[1])
    coco = build_data(tasks["coco"]["data"])
    assert coco.classes == ("background", *COCO_IDS)
    assert len(coco.classes) == 81
    labels = [coco.test[i].label for i in range(4)]
    assert {int(v) for label in labels if label is not None for v in np.unique(label)} >= {0, 80, VOID}, "toothbrushes, a crowd"
    assert labels[2] is not None
    assert not labels[2].any(), "an image without an object is part of the test"
    voc = build_data(tasks["voc"]["data"])
    assert voc.classes == VOC_CLASSES
    label = voc.train[0].label
    assert label is not None
    assert np.unique(label).tolist() == [0, 1, VOID]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (".", r"no folder at .*/coco/train2017 \(the nearest that exists is "),
        ("coco/val2017", "no folder at .*/coco/val2017"),
        ("coco/annotations/instances_val2017.json", r"no file at .*/coco/annotations/instances_val2017\.json"),
        ("VOCdevkit", "no folder at .*/VOCdevkit/VOC2012"),
        ("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", r"no list .*/val\.txt: expected one of \['train'\]"),
        ("edges2handbags/val", "no folder at .*/edges2handbags/val"),
    ],
)
def test_data_that_is_not_where_the_downloads_put_it_is_one_clear_error_before_the_first_step(
    data: Path, tmp_path: Path, lost: str, message: str
) -> None:
    root = tmp_path / "DATA"
    if lost != ".":
        shutil.copytree(data, root)
        gone = root / lost
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(InputError, match=message):
        run(_config(root, tmp_path / "run", *SMALL))
    assert not (tmp_path / "run" / "metrics").exists()
