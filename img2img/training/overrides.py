"""The `KEY=VALUE` of a command, which override a config: checked before Hydra reads them, and taken apart by group."""

from collections.abc import Collection, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from img2img.errors import InputError
from img2img.training.compose import ONLY_HERE
from img2img.training.config import ExperimentConfig
from img2img.training.config_files import config_folders, config_groups, experiment_names
from img2img.validation import WHOLE, check_key, did_you_mean

_TAKE_A_WORD = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun", "--info", "-i",
}  # fmt: skip
"""Hydra's options whose value may be the next argument."""


def check_overrides(arguments: Sequence[str], *, experiment: bool = True, named: bool = True) -> None:
    """Check that Hydra can read the `KEY=VALUE` among the arguments of a command, and that the typed config has the keys.

    Keys below an option that takes any mapping, such as `tasks`, are left to Hydra and to whatever reads them.

    Args:
        arguments: of the command.
        experiment: the config is an experiment's, whose keys are checked.
        named: the experiment is one of the files in `experiment/`, so that a stray word may be meant for its name.

    Raises:
        InputError: it cannot read one, with how to quote it; a word is none; or there is no such key, with the nearest one.
    """
    parser = OverridesParser.create()
    groups = config_groups(config_folders(arguments))
    # Then there may be groups that are not known here.
    elsewhere = any(argument.lstrip("+").startswith(("hydra.searchpath", "--config-path", "-cp")) for argument in arguments)
    for before, argument in zip(("", *arguments), arguments, strict=False):
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or before in _TAKE_A_WORD:
            continue
        if not equals and not argument.startswith("~"):
            raise _no_override(argument, experiment_names(config_folders(arguments)) if experiment and named else ())
        try:
            parsed = parser.parse_override(argument)
        except HydraException as error:
            quoted = value.replace('"', '\\"')
            reason = " ".join(str(error).split("\n", 1)[0].split())
            raise InputError(
                f"{argument!r} cannot be read ({reason}): a value with = , : [ ] {{ }} or spaces that is plain text goes into "
                f"quotes inside the shell's, such as '{key}=\"{quoted}\"'"
            ) from error
        chosen = "" if parsed.is_delete() or parsed.is_sweep_override() else parsed.value()
        if parsed.key_or_group in groups and not isinstance(chosen, str | list | dict):
            raise InputError(f"{argument}: expected the name of a file in {parsed.key_or_group}/ of the configs, without .yaml")
        path = parsed.key_or_group.split(".")
        known = path[0] in (*groups, *ONLY_HERE) or path[0].startswith("hydra/")
        if experiment and not known and (path[0] in ExperimentConfig.model_fields or not elsewhere):
            check_key(ExperimentConfig, path, what=WHOLE, others=[*groups, "data_root"])


def taken_apart(overrides: Sequence[str], groups: Collection[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The overrides without those of some groups, and what these give each group: `task.sigma=50` is {"sigma": 50} of "task".

    Raises:
        InputError: Hydra cannot read one, or it takes something away.
    """
    parser = OverridesParser.create()
    others, found = [], {group: dict[str, Any]() for group in groups}
    for text in overrides:
        group, dot, path = text.partition("=")[0].lstrip("+~").partition(".")
        if not dot or group not in found:
            others.append(text)
            continue
        check_overrides([text], experiment=False)
        parsed = parser.parse_override(text)
        if parsed.is_delete() or parsed.is_sweep_override():
            raise InputError(f"{text!r}: expected one value, {group}.{path}=VALUE; correct it")
        place = found[group]
        *above, last = path.split(".")
        for key in above:
            place = place.setdefault(key, {})
        place[last] = parsed.value()
    return others, found


def _no_override(word: str, experiments: Collection[str]) -> InputError:
    """The error for a word among overrides, which may be the name of an experiment."""
    near = did_you_mean(word, experiments).replace("'", "")
    meant = f"did you mean experiment={near.removeprefix('did you mean ')}" if near else ""
    return InputError(
        f"got {word!r}: {meant}expected KEY=VALUE, such as train.optimiser.lr=1e-3; see docs/reference/config.md for the keys"
    )
