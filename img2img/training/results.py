"""`results.json`: the outcome of a sequence in one schema."""

from collections.abc import Mapping
from typing import Any

from img2img.masks import MaskedNetwork
from img2img.masks.methods.mixed import own_names
from img2img.masks.task import total_bytes
from img2img.metrics import sequence as transfer
from img2img.training.config import Experiment
from img2img.training.strategies import MASKS

SCHEMA = 1


def collect_results(experiment: Experiment, progress: Mapping[str, Any], network: MaskedNetwork) -> dict[str, Any]:
    """The results of the finished tasks.

    `forgetting.value_matrix[t][i]` is the primary metric of task i on its test set after task t was learned, null above the
    diagonal; `max_abs_output_change` is over all earlier tasks' probes after every task.
    """
    finished = [task for task in experiment.tasks if task.name in progress["tasks"]]
    tasks, trivial, higher = [], [], []
    for config in finished:
        name = config.name
        entry, kind = progress["tasks"][name], config.task.builder
        decoder = progress["comparisons"].get("decoder_only", {}).get(name)
        trivial.append(entry["trivial"][kind.metric])
        higher.append(kind.higher_is_better)
        tasks.append(
            {
                "name": name,
                "kind": kind.kind,
                "metric": kind.metric,
                "higher_is_better": kind.higher_is_better,
                "value": entry["value"],
                "trivial": trivial[-1],
                "trivial_name": kind.baseline_name,
                "decoder_only": None if decoder is None else decoder["value"],
                "decoder_only_bytes": None if decoder is None else decoder["bytes"],
                "method": config.method_spec.kind if config.own_method else None,
                "before": entry["before"],
                "bytes": entry["bytes"],
                "density": entry["density"],
                "train_seconds": entry["train_seconds"],
                "steps": entry["steps"],
                "best_step": entry["best_step"],
                "test_images": entry["test_images"],
                "figures": entry["figures"],
                "trivial_figures": entry["trivial"],
            }
        )
    matrix: list[list[float | None]] = [row + [None] * (len(finished) - len(row)) for row in progress["rows"]]
    skills = transfer.skill_matrix(matrix, trivial, higher)
    # Forward transfer wants each task's figure just before its own training: the row above its own.
    with_before = [list(row) for row in matrix]
    for i in range(1, len(finished)):
        with_before[i - 1][i] = tasks[i]["before"]
    forward = transfer.forward_transfer(transfer.skill_matrix(with_before, trivial, higher))
    weights = network.masked_weights()
    own = own_names(experiment.masks.trainable_copies or (), weights) if experiment.strategy.kind == MASKS else []
    changes = [change for row in progress["changes"] for change in row.values()]
    return {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "backbone": {
            "name": backbone_name(experiment.backbone.options()),
            "mode": experiment.backbone.mode,
            "parameters": sum(p.numel() for p in network.backbone.parameters()),
            "masked_parameters": sum(w.numel() for name, w in weights.items() if name not in own),
            "own_parameters": sum(weights[name].numel() for name in own),
            "bytes": total_bytes(network.backbone.state_dict()),
            "sha256": network.backbone_sha256,
        },
        "method": experiment.method.kind,
        "method_options": dict(experiment.method.options),
        "norm": experiment.masks.norm,
        "seed": experiment.seed,
        "shared_bytes": progress["shared_bytes"],
        "tasks": tasks,
        "forgetting": {"value_matrix": matrix, "max_abs_output_change": max(changes, default=0.0)},
        "transfer": {
            "average_skill": transfer.average_skill(skills),
            "backward": transfer.backward_transfer(skills),
            "forward": forward,
            "forgetting": transfer.forgetting(skills),
        },
        "environment": dict(progress["environment"]),
    }


def backbone_name(options: Mapping[str, Any]) -> str:
    """A short name such as "unet tu-tf_efficientnet_lite0"."""
    return " ".join(str(options[k]) for k in ("arch", "encoder") if k in options) or str(options.get("kind"))
