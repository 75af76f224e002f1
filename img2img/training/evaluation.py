"""A finished run measured again, on its own data: what its bundle gives today beside what was reported."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from img2img.bundle.packaged import check_no_bundle
from img2img.data.cache import CachedDataset
from img2img.errors import InputError, memory_explained
from img2img.files.paths import expanded
from img2img.files.yaml import read_yaml
from img2img.inference import load
from img2img.inference.evaluation import evaluate_task
from img2img.training.compose import without_script_keys
from img2img.training.config import Experiment, read_experiment
from img2img.training.record import Records
from img2img.training.results import read_results
from img2img.training.run_folder import config_path
from img2img.training.strategies import MASKS
from img2img.training.task_data import prepare

logger = logging.getLogger("img2img")

Part = Literal["val", "test"]


def evaluate_run(
    run: str | os.PathLike[str],
    *,
    tasks: Sequence[str] | None = None,
    part: Part = "test",
    device: str = "auto",
    metrics: Sequence[str] = (),
    perceptual: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure tasks of a run's bundle on the data of its config; what is to be said about the data is logged as warnings.

    Args:
        run: the run's folder, with `config/config.yaml` and `bundle/`.
        tasks: which; all that the bundle has by default.
        part: of their data.
        device: see `inference.load`.
        metrics: perceptual metrics in place of those of the config, of tasks that make photos: "lpips", "dists", "kid".
        perceptual: `name` and `weights` of the network that they need.

    Returns:
        By task: `primary_metric`, its name; `metrics`; `baseline`, those of the baseline; `images`, how many; `changed`, what of
        the files of that part, or of those that the task's options name, is another than when it was learned, None where
        nothing is or the run kept no list of them; and of the test set `reported`, what `results.json` says.

    Raises:
        OutOfMemoryError: an image or a batch does not fit into memory; names what to lower.
        InputError: the folder is no run of mask methods, a task is not in its bundle, or its data is gone.
    """
    folder = expanded(run)
    check_no_bundle(folder, "measure one of its tasks on images of your own: img2img evaluate {} --task TASK --images DIR")
    experiment = read_run(folder)
    if experiment.strategy.kind != MASKS:
        raise InputError(
            f"{folder} was learned by {experiment.method.kind!r}, which leaves no bundle of tasks: its results.json has "
            "the metrics"
        )
    with memory_explained("while the bundle was read", "close other programs, or give another device=..."):
        model = load(folder, device=device)
    evaluator = experiment.evaluator(model.backbone, model.device)
    if metrics:
        from img2img.metrics.perceptual import PerceptualMetrics  # torchmetrics' image metrics take a second to import

        evaluator = replace(evaluator, perceptual=PerceptualMetrics(metrics, perceptual))
    reported = {task.name: task.metrics for task in read_results(folder).tasks}
    found, records, configs = {}, Records(experiment, folder), {task.name: task for task in experiment.tasks}
    for name in model.tasks if tasks is None else tasks:
        model.task(name)
        if name not in configs:
            raise InputError(
                f"the bundle of {folder} has a task {name!r} that its config does not have, since it was added later: "
                f"measure it in the run that learned it, or name others of {', '.join(configs)} (--task)"
            )
        task_data = prepare(experiment, configs[name])
        images: CachedDataset = getattr(task_data.parts, part)
        for warning in images.warnings():
            logger.warning("%s: %s", name, warning)
        entry = evaluate_task(evaluator, model, name, task_data.task, images).plain()
        changed = records.difference(task_data, [part])
        entry["changed"] = str(changed) if changed else None
        found[name] = entry | ({"reported": reported.get(name)} if part == "test" else {})
    return found


def read_run(folder: Path) -> Experiment:
    """The experiment of a run's folder, from the config that it keeps.

    A run folder may be a stranger's, so the modules that its config names are not imported: whoever trusts them imports them
    before, see `registry.import_modules`. Nor is anything written to its `cache_dir`.

    Raises:
        InputError: there is none, it cannot be read, or it names a kind that is not known here.
    """
    path = config_path(folder)
    if not path.is_file():
        check_no_bundle(folder)
        raise InputError(f"no run in {folder}: expected config/config.yaml there; give the folder that `img2img train` wrote")
    config = without_script_keys(read_yaml(path, "the config of a run"))
    config.pop("cache_dir", None)
    imports = config.pop("imports", None)
    if imports:
        logger.info(
            "the config of %s names the modules %s: nothing that a run folder names is imported. If its kinds are of your own, "
            "name them: img2img --import MODULE evaluate, or `import MODULE` in Python", folder, str(imports)[:200],
        )  # fmt: skip
    return read_experiment(config)
