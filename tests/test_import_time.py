"""What is loaded when: the command line and `import img2img` start without the heavy libraries."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import img2img
from img2img.extras import version_alone

HEAVY = (
    "torch", "numpy", "PIL", "safetensors", "torchvision", "segmentation_models_pytorch", "albumentations", "matplotlib",
    "fastapi", "hydra", "omegaconf", "lightning_fabric", "huggingface_hub", "cv2", "onnx", "yaml", "ray", "submitit",
)  # fmt: skip


def loaded_after(code: str) -> tuple[set[str], str, int]:
    """The heavy packages that a new process has loaded when `code` has run, what it printed, and its exit code."""
    script = f"""
import atexit, sys
atexit.register(lambda: print("LOADED", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))
{code}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("LOADED")]
    return set(line.split()[1:]), done.stdout + done.stderr, done.returncode


def command(*arguments: str) -> str:
    return f"sys.argv = {['img2img', *arguments]!r}\nfrom img2img.cli import main\nmain()"


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["--help"], 0, "add-task"),
        (["--version"], 0, f"img2img {img2img.__version__}"),
        (["trian"], 2, "trian"),
        (["run", "--help"], 0, "--overwrite"),
        (["tasks", "--help"], 0, "similarity"),
        (["run", "colour"], 2, "IMAGES"),
        (["train", "--pipeline", "odd"], 2, "odd"),
    ],
)
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str], code: int, shown: str) -> None:
    loaded, output, returned = loaded_after(command(*arguments))
    assert (loaded, returned) == (set(), code), output
    assert shown in output


def test_completion_loads_nothing_heavy() -> None:
    asked = "import os\nos.environ |= {'_IMG2IMG_COMPLETE': 'complete_bash', 'COMP_WORDS': 'img2img ta', 'COMP_CWORD': '1'}\n"
    loaded, output, _ = loaded_after(asked + command())
    assert "tasks" in output.split()
    assert loaded == set()


def test_a_config_is_composed_without_what_only_other_methods_need() -> None:
    compose = "from img2img.training.compose import compose\nassert compose('image_to_image', []).method.name == 'sparse_signs'"
    loaded, output, returned = loaded_after(compose)
    assert (returned, "hydra" in loaded) == (0, True), output
    assert not {"torchvision", "segmentation_models_pytorch", "albumentations", "matplotlib"} & loaded


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import img2img\nimg2img.InputError")[0] == set()
    assert loaded_after("import img2img\nimg2img.__version__")[0] == set()


def test_a_pipeline_settles_how_threads_wait_before_torch_is_loaded() -> None:
    assert "torch" not in loaded_after("import img2img.cli.pipeline")[0]


def test_a_task_is_run_without_what_only_a_training_needs(bundle: Path) -> None:
    run = f"import img2img\nimport numpy as np\nmodel = img2img.load({str(bundle)!r})\n"
    run += "for task in ('parts', 'clean'): model.run(task, np.zeros((32, 32, 3), np.uint8))\n"
    run += "for name in ('torchmetrics', 'kornia', 'timm'): assert name not in sys.modules, name"
    loaded, output, returned = loaded_after(run)
    assert (returned, loaded) == (0, {"torch", "numpy", "PIL", "safetensors"}), output


def test_a_training_loads_fabric_without_the_metrics_whose_version_it_asks_for() -> None:
    code = "import sys, img2img.training.loop\n"
    code += "from lightning_fabric.utilities.imports import _TORCHMETRICS_GREATER_EQUAL_1_0_0 as asked\n"
    code += "assert asked and 'torchmetrics' not in sys.modules and 'matplotlib' not in sys.modules\n"
    code += "from torchmetrics import MeanMetric\nMeanMetric()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


WATCHED = (*HEAVY, "kornia", "skimage", "timm", "torchmetrics", "matplotlib.pyplot")
STEPS = {
    "masks": "import img2img; img2img.MaskedNetwork; from img2img.masks import analysis, plots",
    "a figure": "plots.similarity_figure(['a'], [[1.0]])",
    "sequence metrics": "import img2img.metrics.sequence",
    "backbones": "import img2img.backbones",
}
# What PyTorch's checkpointing consists of, and is replaced during a call that trains.
PATCHED = """
import json, sys, torch, torch.utils.checkpoint as c
def entries(): return [vars(c.CheckpointFunction)["forward"], vars(c._checkpoint_hook)["__init__"]]
before, during, found = entries(), [], {}
"""
CALLS = """
kept = [entries() == before]
class Watched(torch.nn.Linear):
    def forward(self, x):
        during.append(entries())
        return super().forward(x)
net = img2img.MaskedNetwork(Watched(2, 2))
net.add_task("a", img2img.masks.Piggyback())
net(torch.ones(1, 2), task="a")
kept.append(entries() == before)
with torch.no_grad(): net(torch.ones(1, 2), task="a")
found["patches"] = [kept, [entries == before for entries in during]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """What one new process, in which no test has run, finds after each of the steps."""
    look = f"[name for name in {WATCHED!r} if name in sys.modules]"
    code = PATCHED + "\n".join(f"{step}\nfound[{name!r}] = {look}" for name, step in STEPS.items()) + CALLS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_core_loads_what_it_uses_and_matplotlib_only_to_draw_and_pyplot_never(steps: dict[str, Any]) -> None:
    assert set(steps["masks"]) == {"torch", "numpy", "safetensors"}
    assert "matplotlib" in steps["a figure"]
    assert "matplotlib.pyplot" not in steps["a figure"]


def test_neither_the_metrics_of_a_sequence_nor_the_backbones_load_a_heavy_library(steps: dict[str, Any]) -> None:
    assert not {"kornia", "torchmetrics", "torchvision"} & set(steps["sequence metrics"])
    assert not {"segmentation_models_pytorch", "timm", "torchvision", "huggingface_hub"} & set(steps["backbones"])


def test_the_mask_core_imports_its_modules_at_their_tops_and_never_its_package() -> None:
    """The rest, circles and other rooms, is checked by import-linter."""
    for path in sorted((Path(img2img.__file__).parent / "masks").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                own = [name for name in names if name and name.split(".")[0] == "img2img"]
                assert not own or node in tree.body, f"{path}: {own} within a function, or for types alone"
                assert "img2img.masks" not in own, path


def test_nothing_of_pytorch_is_replaced_by_an_import_or_after_a_call(steps: dict[str, Any]) -> None:
    kept, as_before = steps["patches"]
    assert kept == [True, True]
    assert as_before == [False, True], "with gradients something is replaced during the call, without nothing"


def test_every_public_name_is_there_and_a_misspelt_one_is_an_attribute_error() -> None:
    for name in img2img.__all__:
        assert getattr(img2img, name) is not None
        assert name in dir(img2img)
    with pytest.raises(AttributeError, match="'laod'"):
        img2img.laod  # noqa: B018


def test_the_module_runs_as_the_command_does() -> None:
    done = [
        subprocess.run([sys.executable, *how, "run", "--help"], capture_output=True, text=True, timeout=120)
        for how in (["-m", "img2img"], ["-c", "from img2img.cli import main; main()"])
    ]
    assert done[0].stdout == done[1].stdout
    assert "Usage: img2img run" in done[0].stdout


def test_of_a_package_that_is_asked_for_its_version_nothing_is_loaded_until_more_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "heavy/__init__.py": "value = 3",
        "heavy/part.py": "value = 4",
        "heavy-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: heavy\nVersion: 1.2\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with version_alone("heavy"):
        stand_in = importlib.import_module("heavy")
        assert stand_in.__version__ == "1.2"
        assert not hasattr(stand_in, "__wrapped__")
    assert "heavy" not in sys.modules
    with version_alone("heavy"):
        importlib.import_module("heavy")
        assert importlib.import_module("heavy.part").value == 4
        assert sys.modules["heavy"].value == 3, "whatever else is asked for is the package's own"
    with version_alone("heavy"):
        assert sys.modules["heavy"].value == 3, "one that is loaded stays"
    with version_alone("no_such_package"):
        assert "no_such_package" not in sys.modules
    del sys.modules["heavy"], sys.modules["heavy.part"]
