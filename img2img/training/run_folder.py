"""The run folder: the config that it keeps, one run at a time, and what a kill left behind."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers, write_bytes
from img2img.files.lock import hold
from img2img.training.config import Experiment
from img2img.training.progress import read_progress
from img2img.training.results import Progress
from img2img.training.strategy_files import remove_older

if TYPE_CHECKING:
    from img2img.training.sequence import SequenceRunner


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


@contextmanager
def alone(runner: "SequenceRunner") -> Iterator[None]:
    """Keep the run folder to this run for the length of the block, and read its progress as it is now.

    Of several processes that train together the first holds it for all, and all are told when it cannot.

    Raises:
        FolderInUseError: another process works in it.
        OSError: it cannot be written.
        InputError: see `read_progress`.
    """
    with ExitStack() as stack:

        def take() -> Exception | None:
            try:
                stack.enter_context(hold(runner.folder))
            except (InputError, OSError) as error:
                return error
            return None

        refused = runner.processes.on_rank_zero(take)
        if refused is not None:
            raise refused
        runner.progress = read_progress(runner.experiment)  # another run may have ended since it was read first
        yield


def clear(folder: Path, progress: Progress, experiment: Experiment) -> None:
    """Remove what a run leaves behind that is killed at some moments: temporary files, and what only an unfinished task needs.

    Args:
        folder: the run folder, which no other process uses.
        progress: its `progress.json`.
        experiment: that goes on in it.
    """
    clear_leftovers(folder, below=3)
    names = list(progress.tasks)
    for task in (task for task in experiment.tasks if task.name in names):
        # No name of a task or a method has a dot.
        due = {m.kind for m in task.compare if task.name not in progress.comparisons.get(m.kind, {})}
        for path in (folder / "checkpoints").glob(f"{task.name}.*"):
            if path.name.split(".")[1] not in due:
                path.unlink(missing_ok=True)
    remove_older(folder, names)
