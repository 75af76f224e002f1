"""The config that a run folder keeps of what it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from img2img.files.atomic import write_bytes


@dataclass(frozen=True)
class SavedConfig:
    """The texts of a run folder's `config/`.

    Attributes:
        config: YAML, for `config/config.yaml`: with what its values were interpolated from, such as `data_root`.
        overrides: YAML, for `config/overrides.yaml`: what was given on the command line; None for no such file.
    """

    config: str
    overrides: str | None = None

    @classmethod
    def plain(cls, config: Mapping[str, Any]) -> Self:
        """Of plain values, which come from no command line."""
        from omegaconf import OmegaConf

        return cls(OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def config_path(run: Path) -> Path:
    """The file with a run's config."""
    return run / "config" / "config.yaml"


def keep_config(run: Path, composed: SavedConfig) -> None:
    """Write the config into a run's folder. Not before the run has been accepted: what is there may be that of finished tasks."""
    write_bytes(config_path(run), composed.config.encode())
    if composed.overrides is not None:
        write_bytes(config_path(run).with_name("overrides.yaml"), composed.overrides.encode())
