"""The run folder: one run at a time, cleared of what a kill left behind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from img2img.errors import InputError
from img2img.files.atomic import clear_leftovers
from img2img.files.lock import hold
from img2img.training.config import Experiment
from img2img.training.progress import read_progress
from img2img.training.results import Progress
from img2img.training.strategy_files import remove_older

if TYPE_CHECKING:
    from img2img.training.sequence import SequenceRunner


@contextmanager
def alone(runner: "SequenceRunner") -> Iterator[None]:
    """Keep the run folder to this run for the length of the block, and start from what is in it now.

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
        if runner.processes.is_rank_zero:
            clear(runner.folder, runner.progress, runner.experiment)
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
