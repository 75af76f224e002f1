"""The bound on memory holds, and it is small: measured in processes of their own, against the resident set."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import img2img
from img2img import InputError
from img2img.inference import Model

TASKS = {
    "parts": {"kind": "segmentation", "classes": ["ground", "tree", "house"]},
    "colour": {"kind": "colourisation"},
    "canny": {"kind": "edges", "drawing": "canny"},
    "sobel": {"kind": "edges", "drawing": "sobel"},
    "clean": {"kind": "denoising"},
}
CLASSES = {"animals": {"kind": "classification", "classes": ["cat", "dog"]}}
RESNET = {"kind": "torchvision", "name": "resnet18"}

MEASURE = """
import sys, torch
from pathlib import Path
from PIL import Image
import img2img
torch.set_num_threads(1)
folder, name, height, width, side = sys.argv[1:]
side = None if side == "None" else int(side)
model = img2img.load(folder, device="cpu")
bound = model.memory(name, (int(height), int(width)), side=side)
image = Image.effect_noise((int(width) // 50, int(height) // 50), 60).resize((int(width), int(height))).convert("RGB")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage's begins with that of the parent process
def peak(): return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak()
model.run(name, image, side=side)
print(peak() - before, bound)
"""


def _measured(folder: Path, name: str, size: tuple[int, int], side: int | None = None) -> tuple[int, int]:
    command = [sys.executable, "-c", MEASURE, str(folder), name, *map(str, size), str(side)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    used, bound = found.stdout.split()
    return int(used), int(bound)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.slow
@linux
def test_a_large_image_of_classes_stays_within_its_bound(make_bundle: Callable[..., Path]) -> None:
    used, bound = _measured(make_bundle(RESNET, CLASSES), "animals", (2000, 3000))
    assert used < bound < 600e6  # whole it took 50 to 75 bytes a pixel


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize(("size", "side"), [((4000, 6000), 256), ((2000, 3000), None)])
def test_the_bound_holds(make_bundle: Callable[..., Path], name: str, size: tuple[int, int], side: int | None) -> None:
    used, bound = _measured(make_bundle(tasks=TASKS), name, size, side)
    assert used < bound < 1.8e9


def test_what_the_bound_grows_with(make_bundle: Callable[..., Path]) -> None:
    model: Model = img2img.load(make_bundle(tasks=TASKS))
    for name in TASKS:
        small, large = (model.memory(name, size) for size in ((2000, 3000), (4000, 6000)))
        assert small < large < 2e9
        extra = 16 if name == "canny" else 0
        band = 8 * model.task(name).out_channels * 1024 * 2000
        assert large - small <= (36 + extra) * 18_000_000 + band + 1e6, "the image, its result, and a strip"
        assert model.memory(name, (1024, 23_000)) < 2e9
    with pytest.raises(InputError, match="side=256"):
        model.memory("colour", (2, 6000), side=256)
    with pytest.raises(InputError, match="no task 'style'"):
        model.memory("style", (20, 60))


def test_the_bound_is_known_without_a_merged_network(make_bundle: Callable[..., Path]) -> None:
    """Which a service asks for of every image: of many tasks not all merged networks fit into memory at once."""
    model = img2img.load(make_bundle(tasks=TASKS), device="cpu", weights="merged")
    bounds = {task: model.memory(task, (64, 64)) for task in TASKS}
    model._merged._by_task.clear()
    assert {task: model.memory(task, (64, 64)) for task in TASKS} == bounds
    assert not model._merged._by_task
