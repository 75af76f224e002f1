"""Where the YAML files of `configs/` are: beside the package in a checkout, inside it where it is installed."""

from pathlib import Path


def config_folder() -> Path:
    """The folder that holds `base.yaml`, `experiment/` and so on."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
