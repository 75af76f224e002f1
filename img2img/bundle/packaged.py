"""Bundles that come with img2img: they are opened by name, and never changed."""

import os
from pathlib import Path

from img2img.errors import InputError
from img2img.files.paths import shipped_folder
from img2img.validation import did_you_mean


def packaged_bundles() -> dict[str, Path]:
    """The folders of the bundles that come with img2img, by name."""
    return {path.parent.name: path.parent for path in sorted(shipped_folder("bundles").glob("*/bundle.json"))}


def packaged_bundle(folder: Path) -> Path | None:
    """The folder of the bundle that comes with img2img by that name; None where a path is more than a name, or there is none."""
    return packaged_bundles().get(folder.name) if len(folder.parts) == 1 else None


def check_no_bundle(folder: Path, instead: str = "see what it has: img2img tasks list {}") -> None:
    """Refuse a bundle where the folder of a run is wanted.

    Args:
        folder: what was given.
        instead: what else can be done with a bundle, {} being its folder.

    Raises:
        InputError: it is one, by its folder or by the name under which it comes with img2img.
    """
    if (folder / "bundle.json").is_file() or (not folder.is_dir() and packaged_bundle(folder) is not None):
        run = folder.absolute().parent
        there = (run / "results.json").is_file()
        raise InputError(
            f"{folder} is a bundle, not a run: expected the folder of a run, with results.json and config/; give "
            + (f"{run}, whose bundle it is" if there else f"such a folder, or {instead.format(folder)}")
        )


def near_packaged(name: str | os.PathLike[str]) -> str:
    """A question that names the bundle of img2img that a name without a folder is nearest to; nothing where none is near."""
    text = os.fspath(name)
    return "" if "/" in text or os.sep in text else did_you_mean(text, packaged_bundles())


def check_not_packaged(folder: Path) -> None:
    """Refuse to change a bundle that came with img2img: an upgrade replaces it, and others may use it.

    Raises:
        InputError: it is one.
    """
    for name, packaged in packaged_bundles().items():
        if folder.resolve() == packaged.resolve():
            raise InputError(
                f"the bundle {name!r} came with img2img and is not changed: expected one of your own; copy it first with "
                f"`img2img join my_{name} {name}`, then use my_{name}"
            )
