"""Many methods and seeds of one experiment, side by side.

python pipelines/suite.py image_to_image data_root=DATA --store docs/results/image_to_image --parallel 2
python pipelines/suite.py image_to_image data_root=DATA --methods piggyback finetune --seeds 0
python pipelines/suite.py image_to_image data_root=DATA --launcher ray launcher.address=auto launcher.gpus=1
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from img2img.errors import InputError
from img2img.files.paths import expanded

if TYPE_CHECKING:
    from img2img.research.suites.runner import Job

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> None:
    """Read the suite's config and run it; the same command goes on after an interruption."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="a file of configs/suite, without .yaml")
    parser.add_argument("overrides", nargs="*", help="of every run, such as data_root=DATA train.steps=100")
    parser.add_argument("--methods", nargs="+", help="labels; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, help="the suite's by default; without any, only renew the store's titles")
    parser.add_argument("--out", type=expanded, help="where the runs go; runs/SUITE by default")
    parser.add_argument("--store", type=expanded, help="a folder for metrics, configs and a few images of the runs, for a report")
    parser.add_argument(
        "--parallel",
        type=int,
        help="runs at a time, or jobs of a launcher; 1 by default, each with threads=1 where there are more",
    )
    parser.add_argument("--launcher", choices=["ray", "slurm"], help="each task of a run is a job of its own; launcher.KEY=VALUE")
    parser.add_argument("--choose", action="store_true", help="print the method of each task that validates best in the store")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    from img2img.research.suites.runner import backbone_jobs, describe, launch_jobs, load_suite, method_jobs, run_jobs
    from img2img.research.suites.schema import RUNS
    from img2img.training.config.launcher import read_launcher
    from img2img.training.distributed import refuse_several_processes

    file = ROOT / "configs" / "suite" / f"{options.suite}.yaml"
    try:
        refuse_several_processes("a suite")
        suite = load_suite(file)
        out = options.out or ROOT / "runs" / suite.name
        seeds = list(suite.seeds) if options.seeds is None else options.seeds
        labels = list(suite.methods) if options.methods is None else options.methods
        if options.parallel is not None and options.parallel < 1:
            raise InputError(f"--parallel {options.parallel}: expected a whole number of at least 1")
        of_launcher = [override for override in options.overrides if override.startswith("launcher")]
        more = [override for override in options.overrides if override not in of_launcher]
        if options.launcher is not None:
            launcher = read_launcher({"name": options.launcher, "parallel": options.parallel, **_launcher(of_launcher)})
            jobs = method_jobs(suite, out, labels, seeds, more)
            backbones = backbone_jobs(suite, out, _seeds(jobs), more)
            failed = launch_jobs(suite.pipeline, backbones + jobs, launcher, store=options.store)
        else:
            if of_launcher:
                raise InputError(f"{of_launcher[0]}: expected --launcher ray or slurm with it, or none")
            parallel = options.parallel or 1
            more += ["device.threads=1"] if parallel > 1 else []
            pipeline = ROOT / "pipelines" / f"{suite.pipeline}.py"
            jobs = method_jobs(suite, out, labels, seeds, more)
            failed = run_jobs(pipeline, backbone_jobs(suite, out, _seeds(jobs), more), parallel=parallel, store=None)
            if not failed:
                failed = run_jobs(pipeline, jobs, parallel=parallel, store=options.store)
        if options.store is not None and (options.store / RUNS).exists():
            describe(suite, options.store, out)
        if options.choose:
            _print_choice(options.store)
    except InputError as error:
        sys.exit(f"error: {error}")
    if failed:
        reasons = "see console.txt in" if options.launcher is None else "the reasons are above:"
        sys.exit(f"error: failed, {reasons} " + ", ".join(str(job.folder) for job in failed))


def _seeds(jobs: list["Job"]) -> list[int]:
    """Those that any job has."""
    return list(dict.fromkeys(job.seed for job in jobs))


def _print_choice(store: Path | None) -> None:
    """Print the label of each task's best method by validation."""
    from img2img.research.suites.suite import read_suite
    from img2img.research.suites.summary import chosen_by_validation

    if store is None:
        raise InputError("--choose reads what was stored: give --store too")
    for task, (label, value) in chosen_by_validation(read_suite(store)).items():
        print(f"{task}: {label} (validation {value:.4f})")


def _launcher(overrides: list[str]) -> dict[str, object]:
    """The options among overrides `launcher.KEY=VALUE`."""
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    given = found.get("launcher", {}) if isinstance(found, dict) else {}
    if not isinstance(given, dict):
        raise InputError(f"launcher={given}: expected --launcher {given}")
    return {str(key): value for key, value in given.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
