"""What is loaded when: the command line and `import img2img` start without the heavy libraries."""

import subprocess
import sys

import pytest

import img2img

HEAVY = (
    "torch", "numpy", "PIL", "safetensors", "torchvision", "segmentation_models_pytorch", "albumentations", "matplotlib",
    "gradio", "fastapi", "hydra", "omegaconf", "lightning_fabric", "huggingface_hub", "cv2", "onnx", "yaml",
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


def test_importing_the_package_loads_nothing_heavy_and_using_it_loads_what_is_used() -> None:
    assert loaded_after("import img2img\nimg2img.InputError")[0] == set()
    assert loaded_after("import img2img\nimg2img.__version__")[0] == set()
    loaded, *_ = loaded_after("import img2img\nimg2img.MaskedNetwork")
    assert loaded == {"torch", "numpy", "safetensors"}


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
