"""What the scripts in `pipelines/` share: from a composed config to a run, with a user's mistakes as one message."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from img2img.errors import InputError

ONLY_HERE = ("hydra", "data_root")
"""Keys of the config that other keys refer to and the experiment does not know."""


@contextmanager
def one_message() -> Iterator[None]:
    """Exit with one message, not a traceback, where a run in the block asks its user to act."""
    from img2img.training.loop import OutOfMemoryError, TrainingDivergedError

    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from what was saved last")
    except (InputError, TrainingDivergedError, OutOfMemoryError, OSError) as error:
        sys.exit(f"error: {error}")


def run_config(config: DictConfig, *, then: Callable[[Any, Mapping[str, Any]], object] | None = None) -> None:
    """Resolve a config and run its experiment, see `img2img.run.run`."""
    from img2img.run import run

    with one_message():
        run(plain_config(config), then=then)


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
