"""Run folders of jobs put together into one, which then is that of a run which has learned all of their tasks."""

import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from img2img.bundle.join import join_bundles
from img2img.errors import InputError
from img2img.files.atomic import write_atomic
from img2img.inference.evaluator import finite
from img2img.training.config import Experiment, task_fingerprint
from img2img.training.output_check import OutputCheck
from img2img.training.progress import progress_of, read_progress, write_progress
from img2img.training.results import Progress
from img2img.training.run_folder import alone
from img2img.training.sequence import SequenceRunner

_LOG = "log.txt"


def assemble(experiment: Experiment, sources: Mapping[str, Path]) -> None:
    """Give an experiment's run folder the tasks that other run folders have learned.

    The bundle's files are those of one run. A task that the folder has already is left as it is. It can be killed anywhere, and
    called again.

    Args:
        experiment: whose sequence begins with these tasks, in any number of parts.
        sources: the run folder of each task that is to come, by name.

    Raises:
        InputError: a run folder lacks its task, or learned it under another configuration.
    """
    folder = experiment.folder
    progress = read_progress(experiment)
    new = {name: source for name, source in sources.items() if name not in progress.tasks}
    if not new:
        return
    found = {source: progress_of(source / "progress.json") for source in dict.fromkeys(new.values())}
    for task in experiment.tasks:
        if task.name in new:
            learned = found[new[task.name]].fingerprints.get(task.name)
            if learned != task_fingerprint(experiment, task):
                raise InputError(
                    f"{new[task.name]} has not learned {task.name!r} as this run asks for: delete that folder, and the task is "
                    "learned again"
                )
    if progress.planned:  # join_bundles refuses tasks that the run of a bundle is to learn itself
        progress.planned = list(progress.tasks)
        write_progress(experiment, progress)
    join_bundles(folder / "bundle", list(found))
    for name, source in new.items():
        _copy_files(source, folder, name)
        _take(progress, found[source], name)
    log = "".join((source / _LOG).read_text(encoding="utf-8") for source in found if (source / _LOG).is_file())
    write_atomic(folder / _LOG, lambda path: path.write_text(_text(folder / _LOG) + log, encoding="utf-8"))
    write_progress(experiment, progress)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _take(progress: Progress, other: Progress, name: str) -> None:
    """Add what another run noted of a task."""
    progress.tasks[name] = other.tasks[name]
    for method, of_tasks in other.comparisons.items():
        if name in of_tasks:
            progress.comparisons.setdefault(method, {})[name] = of_tasks[name]
    progress.rows.append([other.tasks[name].value])
    progress.changes.append({})
    progress.shared_bytes, progress.environment = other.shared_bytes, other.environment


def _copy_files(source: Path, target: Path, name: str) -> None:
    """Copy what a run folder keeps of a task beside its bundle: no task's name has a dot, which ends it in a file's name."""
    for kept in ("data", "output_check", "metrics", "previews", "tensorboard"):
        for path in [*(source / kept).glob(f"{name}.*"), *(source / kept).glob(name)]:
            if path.is_dir():
                shutil.copytree(path, target / kept / path.name, dirs_exist_ok=True)
            else:
                write_atomic(target / kept / path.name, partial(shutil.copyfile, path))


def measure_again(experiment: Experiment) -> None:
    """Do for tasks that came together what a run does at the end of its sequence.

    All tasks are measured on their test sets again, and all stored outputs compared bit for bit. Nothing is done where the last
    task's learning has ended with that.

    Raises:
        InputError: the data or the folder cannot be used.
        RuntimeError: an output is not finite any more.
    """
    runner = SequenceRunner(experiment)
    with alone(runner):
        names, progress = list(experiment.sequence), runner.progress
        if set(progress.changes[-1]) == set(names[:-1]):
            return
        runner.prepare()
        stored = OutputCheck(runner.folder / "output_check", experiment.evaluation.check_images)
        anew = stored.complete(names, runner.task_data, runner.run_of, runner.evaluator)
        measured, changes = stored.measure(names, runner.task_data, runner.run_of, runner.evaluator, when="end", last=True)
        newest = {names[-1]: stored.change(names[-1], runner.run_of(names[-1]), runner.evaluator)}
        if not all(map(math.isfinite, (changes | newest).values())):
            raise RuntimeError(
                f"outputs of finished tasks are not finite: {changes | newest}: a bug in img2img, please report it"
            )
        progress.rows[-1] = [finite(found)[runner.task_data[name].task.metric] for name, found in measured.items()]
        progress.changes[-1] = {name: change for name, change in changes.items() if name not in anew}
        progress.planned = names
        write_progress(experiment, progress)
