"""Image tasks in sequence on one frozen network: `python pipelines/image_to_image.py experiment=demo`."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from img2img.errors import InputError

ONLY_HERE = ("hydra", "data_root")
"""Keys of the config that other keys refer to and the experiment does not know."""


@hydra.main(version_base="1.3", config_path="../configs", config_name="image_to_image")
def main(config: DictConfig) -> None:
    """Resolve the config and run it; a user's error is one message, not a traceback."""
    from img2img.run import run
    from img2img.training.loop import OutOfMemoryError, TrainingDivergedError

    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        missing = ", ".join(str(key) for key in config if OmegaConf.is_missing(config, key)) or "a key that others refer to"
        sys.exit(f"error: the config has no value for {missing}: give it on the command line, such as data_root=DATA")
    assert isinstance(plain, dict)
    try:
        run({str(k): v for k, v in plain.items() if k not in ONLY_HERE})
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint")
    except (InputError, TrainingDivergedError, OutOfMemoryError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
