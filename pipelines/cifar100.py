"""Tasks of CIFAR-100, or made images by default: `python pipelines/cifar100.py experiment=cifar100_twenty data_root=DATA`."""

import hydra
from omegaconf import DictConfig

from img2img.cli.pipeline import run_config, start


@hydra.main(version_base="1.3", config_path="../configs", config_name="cifar100")
def main(config: DictConfig) -> None:
    """Run the experiment of the config."""
    run_config(config)


if __name__ == "__main__":
    start(main)
