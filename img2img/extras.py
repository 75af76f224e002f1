"""Packages that only a part of the library needs, with the command that installs them."""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from img2img.errors import InputError


def require(package: str, *, extra: str, what: str) -> Any:
    """Import `package`, or say how to get it.

    Args:
        package: the module's name.
        extra: the extra of img2img that brings it, or several with commas.
        what: what needs it, for the message, such as "an ONNX file".

    Raises:
        InputError: it is not installed, or it is and cannot be imported, which another installation of it mends.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if is_missing(error, package):
            remedy = f"pip install 'img2img[{extra}]'"
            raise InputError(f"{what} needs the package {package!r}, which is not installed: {remedy}") from error
        raise InputError(
            f"{what} needs the package {package!r}, which is installed and cannot be imported ({error}): install it, and what it "
            f"needs, anew: pip install --force-reinstall {_distributions(package)}"
        ) from error


def _distributions(module: str) -> str:
    """What pip calls the packages that bring a module; the module's own name where none says that it does."""
    top = module.partition(".")[0]
    return " ".join(dict.fromkeys(importlib.metadata.packages_distributions().get(top, [top])))


def is_missing(error: ImportError, package: str) -> bool:
    """Whether an error of importing `package` says that it is not installed, and not that an import inside of it failed."""
    return isinstance(error, ModuleNotFoundError) and error.name is not None and f"{package}.".startswith(f"{error.name}.")


@contextmanager
def version_alone(package: str) -> Iterator[None]:
    """In the block, importing `package` gives a module that has its version, and loads the package when asked for anything else.

    For an import of another package in the block, which would load all of this one to ask for its version. A package that is
    loaded already, or not installed, stays as it is.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:
        yield
        return

    def load(name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of every module by whoever looks through them
            raise AttributeError(name)
        if sys.modules.get(package) is stand_in:
            del sys.modules[package]
        return getattr(importlib.import_module(package), name)

    stand_in = ModuleType(package)
    stand_in.__spec__, stand_in.__file__ = spec, spec.origin
    stand_in.__dict__.update(__version__=importlib.metadata.version(package), __getattr__=load)
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(package) is stand_in:
            del sys.modules[package]
