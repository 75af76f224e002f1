"""Folders that a wheel carries inside the package, and that lie beside it in a checkout."""

from pathlib import Path


def shipped_folder(name: str) -> Path:
    """The folder of that name: inside the package where it is installed, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / name
