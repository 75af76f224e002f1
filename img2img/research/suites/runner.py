"""A suite: one experiment under many methods and seeds, each a run of its own, all from the same backbone of their seed."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from img2img.errors import InputError
from img2img.files.atomic import check_folder
from img2img.files.json_files import read_json
from img2img.files.lock import FolderInUseError, check_free
from img2img.files.writable import check_writable
from img2img.files.yaml import read_yaml
from img2img.research.suites.schema import RUNS, About, MethodInfo
from img2img.research.suites.sheets import IMAGES
from img2img.research.suites.store import describe_store, read_store, store_run
from img2img.research.suites.summary import finish
from img2img.training.config.launcher import LauncherOptions
from img2img.validation import Options, checked

logger = logging.getLogger("img2img")


class Variant(Options):
    """One method of a suite."""

    title: str
    """What reports call it."""
    group: Literal["mask", "comparison", "reference"]
    """"comparison" learns the sequence in one network, or parts of one; "reference" is a network a task."""
    overrides: Sequence[str]
    """What it changes in the experiment, as on the command line."""
    note: str = ""
    """One sentence for the report."""
    seeds: Sequence[int] | None = None
    """Of the suite's seeds those that it has; None: all."""


class SuiteConfig(Options):
    """A comparison, as a file under `configs/suite/` describes it."""

    name: str
    """Also the name of its folders."""
    title: str
    """What the report calls it."""
    overrides: Sequence[str]
    """The experiment and what the suite changes in it, as on the command line of the pipeline."""
    seeds: Sequence[int]
    """Of every method, in the order in which they are run: all methods of one seed before the next."""
    methods: Mapping[str, Variant]
    """By label."""
    pipeline: str = "image_to_image"
    """The script in `pipelines/` that runs it."""
    first: Sequence[str] | None = None
    """Overrides that leave the first task alone in the sequence; each seed's backbone is trained so, once. None where no task
    trains the backbone."""

    @model_validator(mode="after")
    def _seeds_of_methods(self) -> Self:
        for label, method in self.methods.items():
            if beyond := [seed for seed in method.seeds or () if seed not in self.seeds]:
                raise ValueError(f"methods.{label}.seeds has {beyond[0]}: expected some of the suite's, {list(self.seeds)}")
        return self


def load_suite(file: Path) -> SuiteConfig:
    """The suite of a YAML file.

    With `base: NAME` it is the suite of NAME.yaml beside it, which may have a base too, but for the keys that it has itself;
    `methods` may then be a list, of those labels of the base that it takes.

    Raises:
        InputError: no such file or base, an unknown key, or a value that cannot be used.
    """
    return checked(SuiteConfig, _inherited(file, ()), what=str(file))


def _inherited(file: Path, of: tuple[Path, ...]) -> dict[str, Any]:
    """What a suite's file says, on top of what its base says, and the base's own; `of` are the suites that it is a base of."""
    if file in of:
        raise InputError(f"{file}: it is a base of its own, by way of {', '.join(each.stem for each in of)}: remove one `base`")
    content = _content(file)
    base = content.pop("base", None)
    if base is None:
        return content
    inherited = _inherited(file.with_name(f"{base}.yaml"), (*of, file))
    theirs = inherited.get("methods", {})
    methods = content.get("methods", theirs)
    if isinstance(methods, list):
        unknown = [label for label in methods if label not in theirs]
        if unknown:
            raise InputError(f"{file}: the base {base!r} has no method {unknown[0]!r}; it has {', '.join(theirs) or 'none'}")
        methods = {label: theirs[label] for label in methods}
    return {**inherited, **content, "methods": methods}


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise InputError(f"no suite {file.stem!r}: expected one of {known}")
    return read_yaml(file, "a suite")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a suite: its folder, and the command line that makes it."""

    label: str
    seed: int
    folder: Path
    overrides: list[str] = field(default_factory=list)


def backbone_jobs(suite: SuiteConfig, out: Path, seeds: Sequence[int], more: Sequence[str]) -> list[Job]:
    """The runs that train the backbone of each seed."""
    jobs: list[Job] = []
    for seed in seeds if suite.first is not None else ():
        folder = out / "backbone" / str(seed)
        overrides = [*suite.overrides, *(suite.first or ()), *more, f"seed={seed}", f"out={folder}"]
        jobs.append(Job(label="backbone", seed=seed, folder=folder, overrides=overrides))
    return jobs


def method_jobs(suite: SuiteConfig, out: Path, labels: Sequence[str], seeds: Sequence[int], more: Sequence[str]) -> list[Job]:
    """The runs of the methods, seed by seed, each method's seeds alone.

    Raises:
        InputError: there is no method of such a label, a seed is below 0, or no method has one of the seeds.
    """
    for label in labels:
        if label not in suite.methods:
            raise InputError(f"the suite {suite.name!r} has no method {label!r}; it has {', '.join(suite.methods)}")
    if seeds and min(seeds) < 0:
        raise InputError(f"seed {min(seeds)}: expected whole numbers from 0")
    jobs = []
    for seed in seeds:
        for label in labels:
            variant = suite.methods[label]
            if variant.seeds is not None and seed not in variant.seeds:
                continue
            folder = out / label / str(seed)
            first = [] if suite.first is None else [f"backbone_from={out / 'backbone' / str(seed)}"]
            overrides = [*suite.overrides, *first, *variant.overrides, *more, f"seed={seed}", f"out={folder}"]
            jobs.append(Job(label=label, seed=seed, folder=folder, overrides=overrides))
    if seeds and not jobs:
        known = "; ".join(f"{label} has {', '.join(map(str, suite.methods[label].seeds or ()))}" for label in labels)
        raise InputError(f"nothing to run of seeds {', '.join(map(str, seeds))}: {known}")
    return jobs


def run_jobs(pipeline: Path, jobs: Sequence[Job], *, parallel: int, store: Path | None) -> list[Job]:
    """Run jobs, `parallel` at once, each as a process of `pipeline`; a job that is finished, or was cut off, goes on.

    Args:
        pipeline: the script.
        jobs: what to run.
        parallel: processes at a time.
        store: the folder with the `runs.jsonl` to which each finished run's config and metrics are added; None for none.

    Raises:
        InputError: the folders of the runs or the store cannot be written to, or the store is damaged.

    Returns:
        The jobs that failed, or whose data is not that of the results stored before; the console output of each job is in its
        folder, `console.txt`.
    """

    def run(job: Job) -> bool:
        try:
            check_free(job.folder)  # its console.txt is that of the process which works there
        except FolderInUseError as error:
            logger.error("%s, seed %d: failed: %s", job.label, job.seed, error)
            return False
        job.folder.mkdir(parents=True, exist_ok=True)
        logger.info("%s, seed %d: begins", job.label, job.seed)
        with open(job.folder / "console.txt", "w", encoding="utf-8") as console:
            code = subprocess.run([sys.executable, str(pipeline), *job.overrides], stdout=console, stderr=console).returncode
        if code:
            logger.error("%s, seed %d: failed: %s", job.label, job.seed, _cause((job.folder / "console.txt").read_text("utf-8")))
        else:
            logger.info("%s, seed %d: finished", job.label, job.seed)
        return code == 0 and _stored(job, store)

    _check_folders(jobs, store)
    with ThreadPoolExecutor(parallel) as pool:
        return [job for job, fine in zip(jobs, pool.map(run, jobs), strict=True) if not fine]


def _check_folders(jobs: Sequence[Job], store: Path | None) -> None:
    if store is not None:
        check_writable(check_folder(store, "--store"), "--store", IMAGES)
        if (store / RUNS).exists():
            read_store(store)
    for folder in dict.fromkeys(job.folder.parent for job in jobs):
        check_writable(check_folder(folder, "--out"), "--out")


def _stored(job: Job, store: Path | None) -> bool:
    """Add a finished run to the store, if there is one; False where its data is not that of the results stored before."""
    if store is None or job.label == "backbone":
        return True
    if other := other_data(job.folder, store, but=(job.label, job.seed)):
        logger.error("%s, seed %d: not stored: %s", job.label, job.seed, other)
        return False
    store_run(job.folder, store, label=job.label, seed=job.seed)
    return True


def launch_jobs(pipeline: str, jobs: Sequence[Job], options: LauncherOptions, *, store: Path | None) -> list[Job]:
    """Run jobs by a launcher: each task of each method and seed on its own, as soon as what it needs is there.

    Args:
        pipeline: the script's name, whose config they start from.
        jobs: what to run, those that train backbones among them.
        options: of the launcher.
        store: see `run_jobs`.

    Raises:
        InputError: as of `run_jobs`; or a run's config cannot be used, another process works in its folder, or there is no such
            cluster.

    Returns:
        As `run_jobs`.
    """
    from omegaconf import OmegaConf

    from img2img.launch.jobs import Job as Part
    from img2img.launch.jobs import jobs_of
    from img2img.launch.scheduler import run_jobs as run_parts
    from img2img.research.decathlon import ending
    from img2img.training.compose import ENDING, compose, plain_config
    from img2img.training.run_folder import SavedConfig

    _check_folders(jobs, store)
    runs = {f"{job.label}, seed {job.seed}": job for job in jobs}
    parts: list[Part] = []
    for name, job in runs.items():
        composed = compose(pipeline, job.overrides)
        plain = plain_config(composed)
        source = plain.get("backbone_from")
        trained = [each for each, other in runs.items() if other.label == "backbone" and source == str(other.folder)]
        then = ending(composed.get(ENDING), plain) if pipeline == "decathlon" else None
        saved = SavedConfig(OmegaConf.to_yaml(composed), OmegaConf.to_yaml(OmegaConf.create(job.overrides)))
        parts += jobs_of(plain, name=name, needs=trained, threads=options.cpus, composed=saved, then=then)
    refused: list[Job] = []

    def finished(part: Part) -> None:
        if part.ends_run and not _stored(runs[part.name], store):
            refused.append(runs[part.name])

    errors = run_parts(parts, options, finished=finished)
    return [job for name, job in runs.items() if name in errors] + refused


def other_data(run: Path, store: Path, *, but: tuple[str, int] | None = None) -> str | None:
    """Why a run's results are not comparable with the stored ones: a task was learned from other files. None where none was.

    Args:
        run: the run folder.
        store: the store, which need not be there yet.
        but: label and seed of the stored run that it replaces.
    """
    if not (store / RUNS).exists():
        return None
    ours = {task["name"]: task.get("data_sha256") for task in read_json(run / "results.json")["tasks"]}
    for place, other in read_store(store)[1].items():
        for task in other.tasks if (other.label, other.seed) != but else ():
            if task.data_sha256 is not None and ours.get(task.name) not in (None, task.data_sha256):
                return (
                    f"its task {task.name!r} was learned from other files than that of {place}: choose another --store, or run "
                    "both on the same data"
                )
    return None


def _cause(console: str) -> str:
    """The line of a failed job's output that says why."""
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("error:")]
    return (reasons or lines or ["no output"])[-1]


def about(suite: SuiteConfig) -> About:
    """The first line of the suite's store: its title, and how its methods are presented."""
    methods = {
        label: MethodInfo(title=variant.title, group=variant.group, note=variant.note) for label, variant in suite.methods.items()
    }
    return About(suite=suite.name, title=suite.title, methods=methods)


def describe(suite: SuiteConfig, store: Path, out: Path) -> None:
    """Write into a store how its methods are presented, its `summary.json`, and images of the run folders in `out`."""
    describe_store(store, about(suite))
    finish(store, out)
