"""Packages that only a part of the library needs, with the command that installs them."""

import importlib
from typing import Any

from img2img.errors import InputError


def require(package: str, *, extra: str, what: str) -> Any:
    """Import `package`, or say how to get it.

    Args:
        package: the module's name.
        extra: the extra of img2img that brings it.
        what: what needs it, for the message, such as "an ONNX file".

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{what} needs the package {package!r}, which cannot be imported ({error}): pip install 'img2img[{extra}]'"
        ) from error
