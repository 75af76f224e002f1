"""ImpressLearn's study: how well masks of other tasks, of one task, or random ones combine into networks for new tasks.

    python pipelines/impresslearn.py study=tiny                              # made images, under a minute
    python pipelines/impresslearn.py study=permuted_mnist data_root=DATA

Source: "ImpressLearn: Continual learning via combined task impressions" (2022), figures 2, 3 and 6 to 8, table 2, section 5.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from img2img.errors import InputError, memory_explained
from img2img.files.atomic import check_folder, clear_leftovers
from img2img.files.json_files import write_json
from img2img.files.lock import hold
from img2img.files.paths import expanded
from img2img.files.writable import check_writable
from img2img.research.impresslearn import measurements
from img2img.research.impresslearn.numbered_tasks import NumberedTasks, build_numbered_tasks
from img2img.research.impresslearn.options import CLASSES, Study, read_study
from img2img.research.impresslearn.report import write_report
from img2img.research.impresslearn.results import TABLE_2, VERSION, stored_bytes, summarise
from img2img.research.impresslearn.resume_check import check_earlier, check_images, record_path
from img2img.research.impresslearn.study_network import StudyNetwork
from img2img.training.environment import environment
from img2img.training.record import write_record
from img2img.training.run import logged_to
from img2img.training.run_folder import SavedConfig, keep_config

__all__ = ["run"]

logger = logging.getLogger("img2img")


def run(config: Mapping[str, Any], *, composed: SavedConfig | None = None) -> dict[str, Any]:
    """Run a study into its folder and write `results.json`, `summary.json`, `report.md` and `figures/` there.

    Finished tasks and measurements are found in the folder again, so that the same command goes on after an interruption, and
    more seeds, densities or numbers of basis masks can be added to a finished run.

    Args:
        config: plain values, as of `configs/impresslearn.yaml` resolved; see `Study`.
        composed: what `config/` keeps; None for `config` itself.

    Returns:
        The results, as in `results.json`.

    Raises:
        InputError: a key, a value or a file that cannot be used, or the folder holds other results or is in use. It is
            left as it was.
        TrainingDivergedError: a loss is not a number.
    """
    study = read_study(config)
    folder = check_folder(study.out, "out")
    with hold(folder):
        check_earlier(folder, study)
        check_writable(folder, "out")
        clear_leftovers(folder, below=3)
        if study.threads is not None:
            torch.set_num_threads(study.threads)
        family = build_numbered_tasks(study.data)
        _check_enough(study, family)
        files = check_images(folder, family)
        keep_config(folder, composed or SavedConfig.plain(config))
        write_record(record_path(folder), files)
        with logged_to(Console(), folder / "log.txt"), memory_explained("in the study", LOWER):
            return _run(study, family, config)


LOWER = "lower train.together, train.batch_size or inference.batch_size. What was learned is kept; run the same command again"
"""What helps where memory runs out."""


def _run(study: Study, family: NumberedTasks, config: Mapping[str, Any]) -> dict[str, Any]:
    folder = expanded(study.out)
    start = time.perf_counter()
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in study.seeds:
        for density in study.densities:
            for name, found in _measure(StudyNetwork(study, family, seed=seed, density=density)).items():
                rows.setdefault(name, []).extend({"seed": seed, "density": density} | row for row in found)
    results = {
        "version": VERSION,
        "study": {key: value for key, value in config.items() if key not in ("out", "data")},
        "data": {key: value for key, value in study.data.items() if key != "root"},
        "environment": environment(),
        "seconds": time.perf_counter() - start,
        "majority": _majority(family, study),
        **rows,
        "storage": stored_bytes(study, rows),
        "table_2": [row.plain() for row in TABLE_2],
    }
    write_json(folder / "results.json", results)
    write_json(folder / "summary.json", summarise(study, family, results))
    write_report(folder, results)
    logger.info("report: %s", folder / "report.md")
    return results


def _measure(bench: StudyNetwork) -> dict[str, list[dict[str, Any]]]:
    """All rows of one seed and density, by the name of the measurement."""
    study = bench.study
    measurements.learn_basis_masks(bench)
    rows = {
        "own": measurements.own_masks(bench),
        "wrong": measurements.wrong_masks(bench),
        "overlaps": measurements.overlaps(bench),
        "combined": [
            row for kind in study.kinds for count in study.counts for row in measurements.combinations(bench, kind, count)
        ],
    }
    if study.basis_tasks:
        rows["basis"] = [row for count in study.counts for row in measurements.basis_tasks(bench, count)]
    if study.inference.tasks and bench.density == study.inference.density:
        rows["inference"] = [measurements.inference(bench, epochs) for epochs in study.inference.epochs]
    if bench.density == study.variants.density:
        rows["variants"] = [row for count in study.variants.counts for row in measurements.variants(bench, count)]
    return rows


def _check_enough(study: Study, family: NumberedTasks) -> None:
    """Raise an `InputError` if the study asks for more tasks than there are."""
    needed = study.masks + max(study.new_tasks, study.inference.tasks)
    if family.number_of_tasks is not None and needed > family.number_of_tasks:
        raise InputError(
            f"the study needs {needed} tasks, {study.masks} for the basis and the rest new, and there are "
            f"{family.number_of_tasks}: lower counts, new_tasks or inference.tasks"
        )


def _majority(family: NumberedTasks, study: Study) -> float:
    """The accuracy of always saying the class that is most frequent in training, on the test images."""
    first = study.new_numbers()[0]
    likely = family.pixels(first, "train")[1].bincount(minlength=CLASSES).argmax()
    return (family.pixels(first, "test")[1] == likely).double().mean().item()
