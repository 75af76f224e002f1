"""The outcome of a sequence, put together from what a run keeps."""

from collections.abc import Mapping
from typing import Any

from img2img.bundle import stored_bytes
from img2img.masks import MaskedNetwork
from img2img.masks.methods.mixed import names_of_copies
from img2img.metrics import sequence as transfer
from img2img.tasks import Task
from img2img.training.config import Experiment
from img2img.training.results import (
    VERSION,
    BackboneResult,
    ComparisonResult,
    ForgettingResult,
    Progress,
    Results,
    TaskResult,
    TransferResult,
)
from img2img.training.strategies import MASKS


def collect_results(
    experiment: Experiment,
    known: Mapping[str, Task],
    progress: Progress,
    network: MaskedNetwork,
    *,
    relative_parameters: float | None = None,
) -> Results:
    """The results of the finished tasks, which are all `known`; `relative_parameters`: see `Strategy.relative_parameters`."""
    finished = [task for task in experiment.tasks if task.name in progress.tasks]
    tasks, baselines, higher = [], [], []
    for config in finished:
        record, task = progress.tasks[config.name], known[config.name]
        baselines.append(record.baseline[task.metric])
        higher.append(task.higher_is_better)
        compared = {method: entries[config.name] for method, entries in progress.comparisons.items() if config.name in entries}
        tasks.append(
            TaskResult(
                name=config.name,
                kind=task.kind,
                primary_metric=task.metric,
                higher_is_better=task.higher_is_better,
                value=record.value,
                baseline=baselines[-1],
                baseline_name=task.baseline_name,
                comparisons={m: ComparisonResult(value=found.value, bytes=found.bytes) for m, found in compared.items()},
                method=config.method_spec.kind if config.own_method else None,
                before=record.before,
                bytes=record.bytes,
                density=record.density,
                train_seconds=record.train_seconds,
                steps=record.steps,
                best_step=record.best_step,
                val=record.val,
                test_images=record.test_images,
                metrics=record.metrics,
                finetuned=record.finetuned,
                baseline_metrics=record.baseline,
            )
        )
    matrix = progress.value_matrix()
    skills = transfer.skill_matrix(matrix, baselines, higher)
    # Forward transfer wants each task's metric just before its own training: the row above its own.
    with_before = [list(row) for row in matrix]
    for i in range(1, len(finished)):
        with_before[i - 1][i] = tasks[i].before
    forward = transfer.forward_transfer(transfer.skill_matrix(with_before, baselines, higher))
    weights = network.masked_weights()
    own = names_of_copies(experiment.masks.trainable_copies or (), weights) if experiment.strategy.kind == MASKS else []
    return Results(
        version=VERSION,
        experiment=experiment.name,
        backbone=BackboneResult(
            name=backbone_name(experiment.backbone.options()),
            mode=experiment.backbone.mode,
            parameters=sum(p.numel() for p in network.backbone.parameters()),
            masked_parameters=sum(w.numel() for name, w in weights.items() if name not in own),
            copied_parameters=sum(weights[name].numel() for name in own),
            bytes=stored_bytes(network.backbone.state_dict()),
            sha256=network.backbone_sha256,
        ),
        method=experiment.method.kind,
        method_options=dict(experiment.method.options),
        norm=experiment.masks.norm,
        seed=experiment.seed,
        shared_bytes=progress.shared_bytes,
        relative_parameters=relative_parameters,
        tasks=tasks,
        forgetting=ForgettingResult(
            value_matrix=matrix,
            max_abs_output_change=progress.largest_output_change(),
            remeasured=experiment.evaluation.remeasured(cannot_forget=experiment.strategy.builder.cannot_forget),
        ),
        transfer=TransferResult(
            average_skill=transfer.average_skill(skills),
            backward=transfer.backward_transfer(skills),
            forward=forward,
            forgetting=transfer.forgetting(skills),
        ),
        environment=dict(progress.environment),
    )


def backbone_name(options: Mapping[str, Any]) -> str:
    """A short name such as "unet tu-tf_efficientnet_lite0"."""
    return " ".join(str(options[k]) for k in ("arch", "encoder") if k in options) or str(options.get("kind"))
