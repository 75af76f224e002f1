"""Image tasks in sequence on one frozen network: `python pipelines/image_to_image.py experiment=demo`."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from img2img.errors import InputError

ONLY_HERE = ("hydra", "data_root")
"""Keys of the config that other keys refer to and the experiment does not know."""


@hydra.main(version_base="1.3", config_path="../configs", config_name="image_to_image")
def main(config: DictConfig) -> None:
    """Resolve the config and run it; a user's error is one message, not a traceback."""
    from img2img.run import run
    from img2img.training.loop import OutOfMemoryError, TrainingDivergedError

    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    try:
        run({str(k): v for k, v in plain.items() if k not in ONLY_HERE})
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint")
    except (InputError, TrainingDivergedError, OutOfMemoryError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
