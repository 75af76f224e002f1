"""The Visual Decathlon: `python pipelines/decathlon.py experiment=decathlon data_root=DATA`; made pictures by default."""

import hydra
from omegaconf import DictConfig

from img2img.pipeline import run_config, start


@hydra.main(version_base="1.3", config_path="../configs", config_name="decathlon")
def main(config: DictConfig) -> None:
    """Run the experiment of the config, then score it and write the challenge server's file where its pictures are there."""
    from img2img.decathlon import finish

    run_config(config, then=finish)


if __name__ == "__main__":
    start(main)
