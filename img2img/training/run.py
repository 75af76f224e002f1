"""One experiment from its config to its report: what `pipelines/` calls."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from img2img.errors import memory_explained
from img2img.files.atomic import check_folder
from img2img.files.json_files import write_json
from img2img.files.writable import check_writable
from img2img.masks import MaskedNetwork
from img2img.training.collect import collect_results
from img2img.training.config import read_experiment
from img2img.training.mask_report import describe_masks
from img2img.training.output_images import save_outputs, save_panels
from img2img.training.run_folder import SavedConfig, alone, clear, keep_config
from img2img.training.sequence import ProgressFor, SequenceRunner
from img2img.training.strategies import MASKS

Then = Callable[[SequenceRunner, Mapping[str, Any]], object]
"""`then(runner, results)`: what a pipeline does with a finished run."""
Report = Callable[[Path], Path]
"""`report(run folder)`: writes the page of a finished run and returns its path."""


FOLDERS = (
    "bundle", "bundle/tasks", "strategy", "checkpoints", "data", "metrics", "output_check", "images", "outputs", "previews",
    "config",
)  # fmt: skip
"""Of a run's folder: those that are written to."""


def run(
    config: Mapping[str, Any],
    *,
    composed: SavedConfig | None = None,
    then: Then | None = None,
    report: Report | None = None,
    bars: bool | ProgressFor = True,
) -> dict[str, Any]:
    """Run an experiment into its folder and write `results.json`, `masks.json`, `images/` and `outputs/` there.

    Nothing is written before the config, what the folder holds and all data have been checked: a run that is refused leaves
    the folder as it was. Of several processes that train together the first writes all of it, and the others nothing.

    Args:
        config: plain values, as of `configs/base.yaml` with an experiment, resolved.
        composed: what `config/` keeps; None for `config` itself.
        then: called with the finished run and its results, before the images and the page; None for nothing.
        report: writes the page, see `img2img.run`; None for no page.
        bars: show the progress on the console; or what makes something else that shows it.

    Returns:
        The results, as in `results.json`.

    Raises:
        InputError: a key, a value, a file or an image that cannot be used, or another process works in the folder.
        TrainingDivergedError: a loss is not a number.
        OutOfMemoryError: with what to lower.
    """
    with memory_explained("in the run", LOWER):
        experiment = read_experiment(config)
        check_folder(experiment.folder, "out")
        check_writable(experiment.folder, "out", *FOLDERS)
        runner = SequenceRunner(experiment)
        with alone(runner):
            return _run(runner, composed or SavedConfig.plain(config), then, report, bars=bars)


LOWER = (
    "lower train.batch_size or train.augmentation.crop for training, evaluation.batch_size for measuring, or make "
    "the images smaller with data.resize. Finished tasks and the last checkpoint are kept; run the same command again"
)
"""What helps wherever in a run memory runs out."""


def _run(
    runner: SequenceRunner, composed: SavedConfig, then: Then | None, report: Report | None, *, bars: bool | ProgressFor
) -> dict[str, Any]:
    experiment = runner.experiment
    runner.prepare()
    if not runner.processes.is_rank_zero:
        with _quiet():
            return _results(runner, runner.run())
    clear(experiment.folder, runner.progress, experiment)
    keep_config(experiment.folder, composed)
    console = Console()
    with logged_to(console, experiment.folder / "log.txt"), _bars(console) as shown:

        def progress_for(what: str, steps: int) -> Any:
            bar = shown.add_task(what, total=steps, metrics="")

            def update(step: int, *, loss: float, best: float | None) -> None:
                best_text = "" if best is None else f" best {best:.4g}"
                shown.update(bar, completed=step, metrics=f"loss {loss:.4g}{best_text}")

            return update

        network = runner.run(progress_for=bars if callable(bars) else progress_for if bars else None)
        results = _results(runner, network)
        write_json(experiment.folder / "results.json", results)
        if then is not None:
            then(runner, results)
        save_panels(runner)
        save_outputs(runner, experiment.folder)
        if experiment.strategy.kind == MASKS:
            write_json(experiment.folder / "masks.json", describe_masks(runner.network))
        if report is not None:
            logging.getLogger("img2img").info("report: %s", report(experiment.folder))
    return results


def _results(runner: SequenceRunner, network: MaskedNetwork) -> dict[str, Any]:
    parameters = runner.strategy.relative_parameters()
    known = {name: data.task for name, data in runner.task_data.items()}
    results = collect_results(runner.experiment, known, runner.progress, network, relative_parameters=parameters)
    if runner.processes.is_rank_zero:
        for task in results.tasks:
            task.data_sha256 = runner.records.digest(task.name)
    return results.model_dump()


def _bars(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    return Progress(*columns, console=console)


@contextmanager
def _quiet() -> Iterator[None]:
    """Log warnings alone for the length of the block: another process says the rest."""
    logger = logging.getLogger("img2img")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def logged_to(console: Console, file: Path | None = None) -> Iterator[None]:
    """Log to the console, on which bars may be, and to a file if there is one, for the length of the block."""
    logger = logging.getLogger("img2img")
    handlers: list[logging.Handler] = [RichHandler(console=console, show_path=False, show_level=False)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        handlers.append(to_file)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Hydra's root logger would print each line again
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
