"""Masks combined for new tasks (ImpressLearn): `python pipelines/impresslearn.py study=permuted_mnist data_root=DATA`."""

import hydra
from omegaconf import DictConfig

from img2img.cli.pipeline import run_study, start


@hydra.main(version_base="1.3", config_path="../configs", config_name="impresslearn")
def main(config: DictConfig) -> None:
    """Run the study of the config."""
    run_study(config)


if __name__ == "__main__":
    start(main, experiment=False)
