"""A config composed from the YAML files of `configs/`, and its values as plain ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from img2img.errors import InputError

ENDING = "imagenet12_accuracy"
"""The key of the Decathlon's config that says how its score is computed; no other script has it."""
ONLY_HERE = ("hydra", "data_root", ENDING)
"""Keys of the config that other keys refer to, or scripts read themselves, and the experiment does not know."""


def config_folder() -> Path:
    """The folder that holds `base.yaml`, `experiment/` and so on: beside the package in a checkout, inside it where installed."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def check_overrides(arguments: Iterable[str]) -> None:
    """Check that Hydra can read the `KEY=VALUE` among the arguments of a command; others are left to it.

    Raises:
        InputError: it cannot read one, with how to quote it.
    """
    parser = OverridesParser.create()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            continue
        try:
            parser.parse_override(argument)
        except HydraException as error:
            quoted = value.replace('"', '\\"')
            reason = " ".join(str(error).split("\n", 1)[0].split())
            raise InputError(
                f"{argument!r} cannot be read ({reason}): a value with = , : [ ] {{ }} or spaces that is plain text goes into "
                f"quotes inside the shell's, such as '{key}=\"{quoted}\"'"
            ) from error


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The experiment's part of a composed config, resolved.

    Raises:
        InputError: a key has no value, or an experiment's file lacks its first line.
    """
    if "experiment" in config:  # a file of the group whose package is not the whole config has its keys there
        raise InputError(
            "the experiment's keys are under 'experiment': expected its YAML file to begin with the line `# @package _global_`, "
            "without anything before it, a byte order mark among it; add the line, or save the file as UTF-8 without the mark"
        )
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        missing = ", ".join(str(key) for key in config if OmegaConf.is_missing(config, key)) or "a key that others refer to"
        raise InputError(f"the config has no value for {missing}: give it on the command line, such as data_root=DATA") from None
    assert isinstance(plain, dict)
    return without_script_keys({str(key): value for key, value in plain.items()})


def without_script_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config without the keys of `ONLY_HERE`: the experiment's part."""
    return {key: value for key, value in config.items() if key not in ONLY_HERE}
