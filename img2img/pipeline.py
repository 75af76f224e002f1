"""What the scripts in `pipelines/` share: from a composed config to a run, with a user's mistakes as one message."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from img2img.errors import InputError

ONLY_HERE = ("hydra", "data_root")
"""Keys of the config that other keys refer to and the experiment does not know."""


def run_config(config: DictConfig, *, then: Callable[[Any, Mapping[str, Any]], object] | None = None) -> dict[str, Any]:
    """Resolve a config and run its experiment, see `img2img.run.run`; exits with one message where the user has to act."""
    from img2img.run import run
    from img2img.training.loop import OutOfMemoryError, TrainingDivergedError

    try:
        return run(plain_config(config), then=then)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint")
    except (InputError, TrainingDivergedError, OutOfMemoryError, OSError) as error:
        sys.exit(f"error: {error}")


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The experiment's part of a composed config, resolved.

    Raises:
        InputError: a key has no value.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        missing = ", ".join(str(key) for key in config if OmegaConf.is_missing(config, key)) or "a key that others refer to"
        raise InputError(f"the config has no value for {missing}: give it on the command line, such as data_root=DATA") from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in ONLY_HERE}
