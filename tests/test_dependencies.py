"""What `pyproject.toml` asks for, what `constraints.txt` pins, and what is installed agree."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

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
