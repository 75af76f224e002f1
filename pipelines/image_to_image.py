"""Image tasks in sequence on one frozen network: `python pipelines/image_to_image.py experiment=demo`."""

import hydra
from omegaconf import DictConfig

from img2img.cli.pipeline import run_config, start


@hydra.main(version_base="1.3", config_path="../configs", config_name="image_to_image")
def main(config: DictConfig) -> None:
    """Run the experiment of the config."""
    run_config(config)


if __name__ == "__main__":
    start(main)
