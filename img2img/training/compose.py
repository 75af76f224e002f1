"""A config composed from the defaults of the typed config and the YAML files of `configs/`, and its values as plain ones."""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from img2img.errors import InputError
from img2img.masks import METHODS
from img2img.training.config import ExperimentConfig
from img2img.training.config.launcher import LAUNCHERS
from img2img.training.config_files import config_folder, config_folders
from img2img.training.strategies import STRATEGIES, comparison_methods
from img2img.validation import WHOLE, did_you_mean

ENDING = "imagenet12_accuracy"
"""The key of the Decathlon's config that says how its score is computed; no other script has it."""
ONLY_HERE = ("hydra", "data_root", "launcher", ENDING)
"""Keys of the config that other keys refer to, or scripts read themselves, and the experiment does not know."""
_DEFAULTS = "_defaults"


class _Methods(dict[str, Any]):
    """The group `method` in Hydra's store: the defaults of each method. Its module is imported when they are asked for.

    Args:
        files: the methods that YAML files describe. The defaults of these are called NAME_defaults, and the file may start from
            them. By the file's own name Hydra would take them for its schema.
    """

    def __init__(self, files: Collection[str]) -> None:
        super().__init__({f"{name}{_DEFAULTS if name in files else ''}.yaml": name for name in method_names()})

    def __getitem__(self, file: str) -> ConfigNode:
        found = super().__getitem__(file)
        if isinstance(found, str):
            node = OmegaConf.create({"name": found, **_defaults_of(found)})
            found = self[file] = ConfigNode(name=file, node=node, group="method", package=None, provider=None)
        return found


def _defaults_of(method: str) -> dict[str, Any]:
    parameters = inspect.signature(METHODS[method] if method in METHODS else STRATEGIES[method]).parameters
    values = {key: "???" if value.default is inspect.Parameter.empty else value.default for key, value in parameters.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def register_defaults(folders: Sequence[Path]) -> None:
    """Make the defaults of the typed config known to Hydra, so that YAML need not repeat them and every key can be overridden.

    `experiment_defaults` holds an experiment's, the groups `method` and `launcher` those of each method and launcher.

    Args:
        folders: where YAML files are looked for, see `config_folders`.
    """
    store = ConfigStore.instance()
    fields = ExperimentConfig.model_fields
    given = {name: field.default for name, field in fields.items() if not field.is_required()}
    config = ExperimentConfig.model_construct(**given).model_dump(mode="json")
    config["compare"] = {name: [] for name in comparison_methods()}
    store.store(name="experiment_defaults", node={name: config[name] for name in given})
    for launcher, options in LAUNCHERS.items():
        store.store(group="launcher", name=launcher, node={"name": launcher, **options().model_dump(mode="json")})
    store.repo["method"] = _Methods({path.stem for folder in folders for path in (folder / "method").glob("*.yaml")})


def method_names() -> list[str]:
    """The names of the mask methods and comparison methods that a config may choose, those of imported modules among them."""
    masks = [name for name in METHODS if name != "mixed"]  # which is made of another and masks.trainable_copies
    return [*masks, *comparison_methods()]


def compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of `configs/NAME.yaml` with these overrides, as the command line of a pipeline composes it.

    Raises:
        InputError: an override names no key or no file.
    """
    register_defaults(config_folders(overrides))
    try:
        with _own_hydra(), hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            return hydra.compose(name, list(overrides))
    except HydraException as error:
        raise composition_error(error) from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the state of a program that uses Hydra itself, and put it back: a process has one, which can be made once."""
    holder, base = GlobalHydra.instance(), VersionBase.instance()
    hydra, version = holder.hydra, base.version_base
    holder.clear()
    try:
        yield
    finally:
        GlobalHydra.set_instance(holder)  # Hydra's own context leaves a copy there
        holder.hydra = hydra
        base.version_base = version


def composition_error(error: HydraException) -> InputError:
    """What Hydra found wrong when it composed a config, as one message: what was got, what is known, and the nearest of it."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = {*error.options, *(method_names() if group == "method" else ())}
        known = sorted(option for option in options if not option.endswith(_DEFAULTS))
        return InputError(
            f"{group}={name}: {did_you_mean(name, known)}expected one of {', '.join(known)}, or a file {group}/{name}.yaml in a "
            "folder of your own, given by --config-dir"
        )
    if twice := re.search(r"Multiple values for (\S+)\. To override a value use 'override (\S+): (\S+)'", text):
        group, name = twice[1], twice[3]
        return InputError(
            f"{group} is chosen twice, by +{group}={name} and in a file: expected {group}={name} without the plus, or in a YAML "
            f"file `override /{group}: {name}`"
        )
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and isinstance(cause.parent_node, DictConfig):
        parent, _, key = cause.full_key.rpartition(".")
        known = [str(name) for name in cause.parent_node]
        if key not in known:
            return InputError(
                f"{parent or WHOLE} has no option {key!r} here: {did_you_mean(key, known)}it has "
                f"{', '.join(known) or 'none'}; another option of its kind is added with a plus, +{cause.full_key}=VALUE"
            )
    because = "" if cause is None else f" ({' '.join(str(cause).split()):.300})"
    return InputError(f"the config cannot be composed: {text:.600}{because}; correct the command line, or the file that is named")


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
        missing = list(_missing(OmegaConf.to_container(config, resolve=False))) or ["a key that others refer to"]
        example = "data_root=DATA" if "data_root" in missing else f"{missing[0]}=VALUE"
        raise InputError(
            f"the config has no value for {', '.join(missing)}: give it on the command line, such as {example}"
        ) from None
    assert isinstance(plain, dict)
    return without_script_keys({str(key): value for key, value in plain.items()})


def _missing(value: Any, place: str = "") -> Iterator[str]:
    """The dotted keys that have no value yet."""
    if value == "???":
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _missing(item, f"{place}.{key}" if place else str(key))


def without_script_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config without the keys of `ONLY_HERE`: the experiment's part."""
    return {key: value for key, value in config.items() if key not in ONLY_HERE}
