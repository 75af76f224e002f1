"""What `pyproject.toml` asks for, what `constraints.txt` pins, and what is installed agree."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
UNPINNED = {"torch", "torchvision", "setuptools", "img2img"}
"""Machines with a GPU need another torch, and torch brings its own setuptools."""
INTERNALS = {
    "segmentation-models-pytorch", "timm", "huggingface-hub", "lightning-fabric", "gradio", "uvicorn", "hydra-core",
    "constriction",
}  # fmt: skip
"""Of these more is used than their documented interface, or their minor versions may break it."""


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for lines in lists for line in lines if not line.startswith("img2img[")]


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
