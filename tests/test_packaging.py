"""The package as it is installed: what it asks for and what is pinned agree, and its wheel does without the checkout."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from img2img.errors import InputError
from img2img.extras import require

ROOT = Path(__file__).parents[1]
UNPINNED = {"torch", "torchvision", "setuptools", "img2img"}
"""Machines with a GPU need another torch, and torch brings its own setuptools."""
INTERNALS = {
    "segmentation-models-pytorch", "timm", "huggingface-hub", "lightning-fabric", "uvicorn", "hydra-core",
    "constriction",
}  # fmt: skip
"""Of these more is used than their documented interface, or their minor versions may break it."""


def _requirements() -> list[Requirement]:
    return [Requirement(line) for lines in _extras().values() for line in lines if not line.startswith("img2img[")]


def _extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "every line is NAME==VERSION"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_what_is_asked_for_is_pinned_at_a_version_that_is_allowed(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    if name in UNPINNED:
        assert name not in _pins()
        assert requirement.specifier.contains(version(name))
    else:
        assert requirement.specifier.contains(_pins()[name])


def test_packages_whose_internals_are_used_have_an_upper_bound() -> None:
    bounded = {canonicalize_name(r.name) for r in _requirements() if any(s.operator in ("<", "==") for s in r.specifier)}
    assert bounded >= INTERNALS


def test_nothing_of_torch_is_pinned() -> None:
    odd = [name for name in _pins() if name.startswith(("nvidia-", "cuda-")) or name in {*UNPINNED, "triton", "sympy"}]
    assert not odd


def _imported(code: str) -> set[str]:
    """The top names of all modules that a file imports, at its top or in a function, and of those that it requires by name."""
    names: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in ("require", "import_module", "importorskip") and isinstance(node.args[0].value, str):
                names.append(node.args[0].value)
    return {name.partition(".")[0] for name in names}


def test_imports_are_found_wherever_they_stand() -> None:
    code = "import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h as i\n    require('j', extra='k', what='l')\n"
    assert _imported(code) == {"a", "c", "h", "j"}


PEERS = {"lycoris", "peft"}
"""Libraries that a benchmark measures where they happen to be installed; nothing else imports them."""


@pytest.mark.parametrize("folder", ["img2img", "pipelines", "benchmarks"])
def test_every_package_that_is_imported_is_declared(folder: str) -> None:
    """One that another package happens to bring may go with its next version, or come as another one."""
    extras = {name: lines for name, lines in _extras().items() if name != "test" or folder == "benchmarks"}
    declared = {canonicalize_name(Requirement(line).name) for lines in extras.values() for line in lines}
    installed = packages_distributions()
    own_modules = {path.stem for path in (ROOT / folder).glob("*.py")} | (PEERS if folder == "benchmarks" else set())
    undeclared: dict[str, list[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in _imported(path.read_text(encoding="utf-8")) - {"img2img"} - own_modules - sys.stdlib_module_names:
            if not declared & {canonicalize_name(d) for d in installed.get(name, [name])}:
                undeclared.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not undeclared, f"declare these in pyproject.toml, in the extra that needs them: {undeclared}"


# ---------------------------------------------------------------------- packages that are missing or broken


def test_a_package_that_is_missing_is_said_with_its_extra() -> None:
    with pytest.raises(InputError, match=r"img2img\[export\]"):
        require("no_such_package_at_all", extra="export", what="a graph")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import no_such_package_at_all", "no_such_package_at_all"),
        ("from os import no_such_name", "no_such_name"),
        ("raise ImportError('needs a newer part')", "needs a newer part"),
    ],
)
def test_a_package_that_is_there_and_broken_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    (tmp_path / "broken_package.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"{reason}.*--force-reinstall broken_package") as refused:
        require("broken_package", extra="export", what="a graph")
    assert "img2img[export]" not in str(refused.value)
    # pip knows packages, not modules.
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"broken_package": ["of-pip", "of-pip"]})
    with pytest.raises(InputError, match=r"the package 'broken_package'.*--force-reinstall of-pip$"):
        require("broken_package", extra="export", what="a graph")


# ---------------------------------------------------------------------- the wheel: its commands, its configs, its templates

OVERRIDES = [
    "experiment=demo", "sequence=[shapes,colour]", "compare.decoder_only=[]", "out=made", "train.steps=2",
    "train.validation.every=2", "evaluation.check_images=1", "evaluation.panels=1", "backbone=image_transformer",
    "backbone.width=4", "backbone.blocks=0", "masks.trainable_copies=null", "device.threads=1",
    "train.validation.precise_bn_batches=0", "train.augmentation.crop=32",
    "tasks.shapes.data.count={train: 8, val: 2, test: 2}", "+tasks.colour.data.limit={train: 4, val: 2, test: 2}",
]  # fmt: skip
MINE = """# @package _global_
name: mine
sequence: [colour]
tasks: {colour: {task: {kind: colourisation}, data: {kind: samples}}}
"""
COMMANDS = {
    "train": ["train", *OVERRIDES],
    "list": ["tasks", "list", "made", "--json"],
    "run": ["run", "colour", "made/images", "--bundle", "made", "--out", "out", "--json"],
    "starter": ["run", "denoise", "made/images/colour.png", "--out", "starter", "--json"],
    "mine": ["train", "--config-dir", "mine", "experiment=mine", "--cfg", "job"],
    "wrong": ["train", "--config-dir", "mine", "experiment=mine", "train.stepz=1"],
}
# All in one process: each new one would take seconds to import the libraries.
PROGRAM = """
import contextlib, io, json, sys
import img2img
from img2img.cli import main
from img2img.training.config_files import config_folder

answers = {"files": [img2img.__file__, str(config_folder())]}
for name, arguments in json.load(sys.stdin).items():
    sys.argv = ["img2img", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):  # as the interpreter takes it
                print(code, file=sys.stderr)
                code = 1
    answers[name] = {"code": code, "out": out.getvalue(), "error": error.getvalue()}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel has it, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("img2img", "configs", "bundles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: away from the checkout, with an experiment of the user's own."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "mine.yaml").write_text(MINE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def answers(installed: Path, place: Path) -> dict[str, Any]:
    """What each of the commands ended with and printed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(COMMANDS), cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_package_and_its_command_are_the_wheels(installed: Path, answers: dict[str, Any]) -> None:
    assert answers["files"] == [str(installed / "img2img" / "__init__.py"), str(installed / "img2img" / "configs")]
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "img2img = img2img.cli:main" in entry.read_text(encoding="utf-8")
    served = installed / "img2img" / "web" / "static"
    assert {path.name for path in served.iterdir()} == {"index.html", "style.css", "script.js"}


def test_a_task_is_trained_and_run_away_from_the_checkout(place: Path, answers: dict[str, Any]) -> None:
    assert not answers["train"]["code"], answers["train"]
    assert (place / "made" / "report.html").is_file()
    assert (place / "made" / "config" / "config.yaml").is_file()
    assert [task["name"] for task in json.loads(answers["list"]["out"])] == ["shapes", "colour"]
    assert not answers["run"]["code"], answers["run"]
    results = json.loads(answers["run"]["out"])["results"]
    assert {Path(result["output"]).name for result in results} == {p.name for p in (place / "made" / "images").glob("*.png")}
    assert all((place / result["output"]).is_file() for result in results)


def test_the_bundle_that_comes_with_it_runs_without_a_training(place: Path, answers: dict[str, Any]) -> None:
    assert not answers["starter"]["code"], answers["starter"]
    assert (place / "starter" / "colour.png").is_file()


def test_an_experiment_of_ones_own_is_found_and_a_wrong_key_named(answers: dict[str, Any]) -> None:
    assert not answers["mine"]["code"], answers["mine"]
    assert "name: mine" in answers["mine"]["out"]
    assert answers["wrong"]["code"] == 1
    assert "stepz" in answers["wrong"]["error"]
