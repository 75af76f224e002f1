"""Options from a config checked against what a class or function takes, with errors that help."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from img2img.errors import InputError


def call_with(build: Callable[..., Any], options: Mapping[str, Any], *, what: str) -> Any:
    """`build(**options)`, after a check of the names.

    Args:
        build: a class or a function that takes keywords.
        options: a config's keys and values.
        what: what the config calls it, for messages, such as "task 'style'".

    Raises:
        InputError: a key is unknown (the closest known one is named) or a required one is missing.
    """
    parameters = inspect.signature(build).parameters
    for key in options:
        if key not in parameters:
            close = difflib.get_close_matches(str(key), parameters, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"{what} has no option {key!r}: {hint}its options are {', '.join(parameters)}")
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise InputError(f"{what} needs the option {missing[0]!r}: add it to the config; its options are {', '.join(parameters)}")
    return build(**options)
