"""The config as one typed tree: what an experiment has after it was read, and what is refused with which words."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from img2img import InputError
from img2img.data.base import ImageDataset
from img2img.masks import Mixed, Piggyback
from img2img.training.config import (
    Experiment,
    OptimiserOptions,
    TrainOptions,
    ValidationOptions,
    backbone_fingerprint,
    read_experiment,
    task_fingerprint,
)
from img2img.validation import Spec, checked, parsed

Make = Callable[..., dict[str, Any]]


def test_everything_of_a_task_is_built_and_merged_in_the_order_of_the_sequence(config: Make) -> None:
    given = config(sequence=["colour", "disks"], masks={"trainable_copies": ["decoder.*"]}, first_train={"steps": 5})
    given["tasks"]["disks"]["train"] = {"optimiser": {"mask_lr": 3e-3}}
    given["tasks"]["colour"]["train"] = {"optimiser": {"mask_lr": 4e-3}}
    experiment = read_experiment(given)
    first, second = experiment.tasks
    assert (first.name, second.name) == experiment.sequence == ("colour", "disks")
    assert (first.train.steps, second.train.steps) == (5, 8), "what is the first task's alone"
    assert (first.train.optimiser.mask_lr, second.train.optimiser.mask_lr) == (4e-3, 3e-3)
    assert first.train.optimiser.lr == second.train.optimiser.lr == 1e-2, "a group is merged, not replaced"
    assert second.method == Mixed(method=Piggyback(init=6e-3), trainable_copies=("decoder.*",))
    assert second.task.build(classes=["a", "b"]).kind == "segmentation"
    assert second.data.options["classes"] == ["ground", "disk"]


def test_a_comparison_method_learns_all_tasks_and_has_no_mask_method(config: Make) -> None:
    experiment = read_experiment(config(method={"name": "ewc", "strength": 2}))
    assert experiment.strategy.kind == "ewc"
    assert experiment.strategy.build().strength == 2
    assert {task.method for task in experiment.tasks} == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": {"joint": ["colour"]}}, "compare.joint: it learns no task on its own"),
        ({"compare": {"decodr": ["colour"]}}, "comparison method 'decodr' is unknown"),
        ({"compare": {"ewc": ["nowhere"]}}, "the task 'nowhere', which the config does not have"),
        ({"method": {"name": "ewc", "strenght": 1}}, "method 'ewc' has no option 'strenght': did you mean 'strength'"),
        ({"method": {"name": "packnet", "first": 2.0}}, "first=2.0: expected 0 to 0.999"),
        ({"masks": {"bases": {"a": {"count": 0, "density": 0.5, "seed": 0}}}}, "masks.bases.a got count: 0: expected 1 or more"),
        ({"masks": {"norm": "mine"}}, "masks got norm: 'mine': expected 'own', 'statistics', 'frozen' or 'instance'"),
        ({"device": {"devices": "two"}}, "device got devices: 'two'"),
        ({"device": {"thread": 1}}, "device has no option 'thread': did you mean 'threads'"),
        ({"train": {"lr": 1e-3}}, "train has no option 'lr': did you mean 'optimiser.lr'"),
        ({"train": 3}, "the config got train: 3: expected a mapping"),
        ({"backbone": {"kind": "image_transformer", "widht": 4}}, "backbone 'image_transformer' has no option 'widht'"),
        ({"tasks": {"disks": 3}}, "tasks got disks: 3: expected a mapping"),
        ({"tasks": {"disks": {"tsk": {}}}}, "tasks.disks has no option 'tsk': did you mean 'task'"),
    ],
)
def test_a_key_or_a_value_is_refused_with_its_place(config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_experiment(config(**changes))


def test_what_a_kind_refuses_is_refused_before_any_data_is_opened(config: Make) -> None:
    given = config(sequence=["colour"])
    given["tasks"]["colour"]["data"]["parts"]["val"]["rot"] = "nowhere"
    with pytest.raises(InputError, match="no option 'rot': did you mean 'root'"):
        read_experiment(given)


def test_a_fingerprint_is_of_what_a_training_depends_on(config: Make) -> None:
    def of(**changes: Any) -> tuple[str, str]:
        experiment = read_experiment(config(**changes))
        return backbone_fingerprint(experiment), task_fingerprint(experiment, experiment.tasks[1])

    plain = of()
    assert of(evaluation={"panels": 1}, device={"accelerator": "auto", "threads": 1}, out="elsewhere") == plain
    for changes in ({"seed": 1}, {"device": {"precision": "bf16-mixed"}}):
        assert all(a != b for a, b in zip(of(**changes), plain, strict=True)), changes
    backbone, task = of(train=config()["train"] | {"optimiser": {"lr": 1e-2, "mask_lr": 1e-4}})
    assert backbone == plain[0], "masks have no part in the backbone's training"
    assert task != plain[1]
    assert of(masks={"norm": "frozen"})[0] == plain[0]


def test_an_experiment_is_frozen_and_complete(config: Make) -> None:
    experiment = read_experiment(config())
    with pytest.raises(ValidationError):
        experiment.seed = 3  # type: ignore[misc]
    assert not {"sequence", "first_train", "compare"} & Experiment.model_fields.keys(), "what is resolved is not kept beside"


def test_options_in_groups_change_one_by_one() -> None:
    options = TrainOptions(steps=10, optimiser=OptimiserOptions(lr=0.5, mask_lr=1e-3, head_lr=0.25))
    changed = options.changed(steps=3, validation={"every": 2}).at_rate(0.5)
    assert (changed.steps, changed.validation) == (3, ValidationOptions(every=2))
    assert changed.optimiser == OptimiserOptions(lr=0.25, mask_lr=5e-4, head_lr=0.125)
    assert options.steps == 10


def _build(*, copy: int, sizes: tuple[int, int] = (1, 2), rate: float = 1.0, kind: ImageDataset | None = None) -> Any:
    """One keyword is called as a method of pydantic's models is."""
    return copy, sizes, rate, kind


def test_a_signature_is_the_form_of_its_options() -> None:
    assert parsed(_build, {"copy": 1, "sizes": [3, 4], "rate": 2}, what="x") == {"copy": 1, "sizes": (3, 4), "rate": 2}
    assert parsed(_build, {}, what="x", later=["copy"]) == {}
    assert isinstance(parsed(_build, {"copy": 1, "rate": 2}, what="x")["rate"], int), (
        "a file that it is written to keeps its bytes"
    )
    for wrong in ({"copy": True}, {"copy": 1.0}, {"copy": "1"}, {"copy": 1, "sizes": [1]}, {"copy": 1, "rate": "1"}):
        with pytest.raises(InputError, match="x got "):
            parsed(_build, wrong, what="x")
    with pytest.raises(InputError, match="x needs the option 'copy'"):
        parsed(_build, {}, what="x")
    with pytest.raises(InputError, match="train got 3: expected a mapping"):
        checked(TrainOptions, 3, what="train")


def test_a_spec_is_written_as_it_was_given() -> None:
    from img2img.tasks import TASKS

    spec = Spec.of(TASKS, {"kind": "denoising", "sigma": 25}, what="task")
    assert spec.plain() == {"kind": "denoising", "sigma": 25}
    assert spec.build().options() == {**spec.plain(), "correlation": [0.0, 1.0], "kernel": 5}
