"""Other domains on a pre-trained classifier, made ones by default: `python pipelines/imagenet_to_sketch.py experiment=pacs`."""

import hydra
from omegaconf import DictConfig

from img2img.cli.pipeline import run_config, start


@hydra.main(version_base="1.3", config_path="../configs", config_name="imagenet_to_sketch")
def main(config: DictConfig) -> None:
    """Run the experiment of the config."""
    run_config(config)


if __name__ == "__main__":
    start(main)
