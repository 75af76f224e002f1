"""Masks combined for new tasks (ImpressLearn): `python pipelines/impressions.py study=permuted_mnist data_root=DATA`."""

import sys

import hydra
from omegaconf import DictConfig

from img2img.errors import InputError


@hydra.main(version_base="1.3", config_path="../configs", config_name="impressions")
def main(config: DictConfig) -> None:
    """Resolve the config and run the study; a user's error is one message, not a traceback."""
    from img2img.impressions import run
    from img2img.pipeline import plain_config
    from img2img.training.loop import TrainingDivergedError

    try:
        run(plain_config(config))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last finished task")
    except (InputError, TrainingDivergedError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
