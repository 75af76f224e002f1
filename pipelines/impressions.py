"""Masks combined for new tasks (ImpressLearn): `python pipelines/impressions.py study=permuted_mnist data_root=DATA`."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../configs", config_name="impressions")
def main(config: DictConfig) -> None:
    """Run the study of the config."""
    from img2img.impressions import run
    from img2img.pipeline import one_message, plain_config
    from img2img.training.processes import refuse_several_processes

    with one_message():
        refuse_several_processes("ImpressLearn's study")
        run(plain_config(config))


if __name__ == "__main__":
    main()
