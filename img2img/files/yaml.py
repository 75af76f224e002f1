"""A YAML file into plain values, or one message that names the file."""

import io
import math
import os
from typing import Any

from img2img.errors import InputError
from img2img.files.paths import expanded

MAX_VALUES = 1_000_000
"""More values than a file may have once its aliases are written out: a few lines can stand for billions."""


def read_yaml(path: str | os.PathLike[str], what: str, *, resolve: bool = True) -> dict[str, Any]:
    """The mapping in a YAML file. Nothing but plain values is made: tags that stand for Python objects are refused.

    Args:
        path: the file.
        what: what it is, for messages, such as "a suite".
        resolve: put the values of interpolations, such as `${seed}`, in their places; False leaves them as text.

    Raises:
        InputError: no such file, no YAML, no mapping, an interpolation without a value, or more than `MAX_VALUES` values.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: expected {what} there; check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = yaml.compose(text, yaml.SafeLoader)
        if document is None:
            raise InputError(f"{path} is empty: expected {what}; restore it from a copy")
        if _values(document, {}) > MAX_VALUES:
            raise InputError(f"{path} stands for more than {MAX_VALUES:,} values: expected {what}; write its aliases (*NAME) out")
        plain = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=resolve, throw_on_missing=resolve)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as {what} ({reason:.300}): correct it, or restore it from a copy") from error
    if not isinstance(plain, dict):
        raise InputError(f"{path} holds a {type(plain).__name__}: expected {what}, a mapping of keys to values; correct it")
    return {str(key): value for key, value in plain.items()}


def _values(node: Any, known: dict[int, float]) -> float:
    """How many values a node of a parsed document is, those of its aliases counted each time; infinite where one holds itself."""
    import yaml

    if id(node) not in known:
        known[id(node)] = math.inf
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]
