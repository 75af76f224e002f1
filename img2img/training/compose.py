"""A config composed from the defaults of the typed config and the YAML files of `configs/`, and its values as plain ones."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from img2img.errors import InputError
from img2img.masks import METHODS
from img2img.training.config import ExperimentConfig
from img2img.training.strategies import STRATEGIES, comparison_methods
from img2img.validation import WHOLE, check_key

ENDING = "imagenet12_accuracy"
"""The key of the Decathlon's config that says how its score is computed; no other script has it."""
ONLY_HERE = ("hydra", "data_root", ENDING)
"""Keys of the config that other keys refer to, or scripts read themselves, and the experiment does not know."""


def config_folder() -> Path:
    """The folder that holds `base.yaml`, `experiment/` and so on: beside the package in a checkout, inside it where installed."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def register_defaults() -> None:
    """Make the defaults of the typed config known to Hydra, so that YAML need not repeat them and every key can be overridden.

    `experiment_defaults` holds an experiment's, and the group `method` one of each method; that of a method with an option that
    has no default is NAME_defaults, for a file that fills it in.
    """
    store = ConfigStore.instance()
    fields = ExperimentConfig.model_fields
    given = {name: field.default for name, field in fields.items() if not field.is_required()}
    config = ExperimentConfig.model_construct(**given).model_dump(mode="json")
    config["compare"] = {name: [] for name in comparison_methods()}
    store.store(name="experiment_defaults", node={name: config[name] for name in given})
    for name in method_names():
        parameters = inspect.signature(_method(name)).parameters
        needed = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
        options = {key: "???" if key in needed else parameter.default for key, parameter in parameters.items()}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        store.store(group="method", name=f"{name}_defaults" if needed else name, node={"name": name, **plain})


def method_names() -> list[str]:
    """The names of the mask methods and comparison methods that a config may choose, those of imported modules among them."""
    masks = [name for name in METHODS if name != "mixed"]  # which is made of another and masks.trainable_copies
    return [*masks, *comparison_methods()]


def _method(name: str) -> Any:
    return METHODS[name] if name in METHODS else STRATEGIES[name]


def compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of `configs/NAME.yaml` with these overrides, as the command line of a pipeline composes it.

    Raises:
        HydraException: an override names no key or no file.
    """
    register_defaults()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def check_overrides(arguments: Iterable[str], *, experiment: bool = True) -> None:
    """Check that Hydra can read the `KEY=VALUE` among the arguments of a command, and that the typed config has the keys.

    Raises:
        InputError: it cannot read one, with how to quote it; or there is no such key, with the nearest one.
    """
    parser = OverridesParser.create()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            continue
        try:
            parsed = parser.parse_override(argument)
        except HydraException as error:
            quoted = value.replace('"', '\\"')
            reason = " ".join(str(error).split("\n", 1)[0].split())
            raise InputError(
                f"{argument!r} cannot be read ({reason}): a value with = , : [ ] {{ }} or spaces that is plain text goes into "
                f"quotes inside the shell's, such as '{key}=\"{quoted}\"'"
            ) from error
        if experiment and parsed.key_or_group:
            check_key(ExperimentConfig, parsed.key_or_group.split("."), what=WHOLE)


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
