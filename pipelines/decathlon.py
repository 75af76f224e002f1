"""The Visual Decathlon: `python pipelines/decathlon.py experiment=decathlon data_root=DATA`; made images by default."""

import hydra
from omegaconf import DictConfig

from img2img.cli.pipeline import run_decathlon, start


@hydra.main(version_base="1.3", config_path="../configs", config_name="decathlon")
def main(config: DictConfig) -> None:
    """Run the experiment of the config and score it."""
    run_decathlon(config)


if __name__ == "__main__":
    start(main)
