"""Every config that is shipped composes and is accepted."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from img2img import InputError
from img2img.backbones import build_backbone
from img2img.research.impresslearn.options import read_study
from img2img.training.compose import compose, method_names, plain_config
from img2img.training.config import Experiment, TrainOptions, read_experiment
from img2img.training.overrides import check_overrides
from img2img.training.strategies import comparison_methods
from img2img.training.task_data import prepare
from img2img.validation import paths_of

CONFIGS = Path(__file__).parents[2] / "configs"
PIPELINES = ("image_to_image", "cifar100", "imagenet_to_sketch", "decathlon")
"""The scripts that run one experiment."""
WITHOUT_DATA = ("demo", "cifar100_made", "domains_made", "decathlon_made")
ON_A_BUNDLE = ("small_sets",)
"""Experiments on the backbone of a bundle, which is to be given; another stands for it here."""


def _names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def _compose(*overrides: str, pipeline: str = "image_to_image") -> Experiment:
    return read_experiment(plain_config(compose(pipeline, list(overrides))))


def _overrides(name: str) -> list[str]:
    more = ["backbone=lite0_unet"] if name in ON_A_BUNDLE else []
    return [f"experiment={name}", *(["data_root=somewhere"] if name not in WITHOUT_DATA else []), *more]


@pytest.mark.parametrize("name", _names("experiment"))
def test_an_experiment_composes_and_its_tasks_are_known(name: str) -> None:
    experiment = _compose(*_overrides(name))
    assert experiment.name == name
    for task in experiment.tasks:
        classes = {"classes": ["a", "b"]} if task.task.builder.has_classes else {}
        assert task.task.build(**classes).kind == task.task.kind


@pytest.mark.parametrize("method", sorted({*method_names(), *_names("method")}))
def test_every_method_can_be_chosen_with_all_its_options(method: str) -> None:
    experiment = _compose(f"method={method}", "+masks.bases.impressions={count: 10, density: 0.1, seed: 0}")
    spec = experiment.method
    assert set(inspect.signature(spec.builder).parameters) == set(spec.options), "so that all can be overridden"
    assert (experiment.tasks[0].method is None) == (spec.kind in comparison_methods())


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("backbone", [name for name in _names("backbone") if name != "bundle"])  # whose bundle is to be given
def test_a_backbone_config_builds(backbone: str) -> None:
    options = _compose(f"backbone={backbone}").backbone.options()
    assert build_backbone({**options, "weights": None, "out_channels": 2}).head_channels > 0


def test_any_subset_can_be_asked_for_on_the_command_line() -> None:
    experiment = _compose(
        "experiment=demo", "sequence=[edges,colour]", "train.steps=7", "+tasks.colour.train.augmentation.crop=32"
    )
    assert list(experiment.sequence) == ["edges", "colour"]
    assert experiment.tasks[1].train.steps == 7
    assert experiment.tasks[1].train.augmentation.crop == 32


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_script_runs_without_data_by_default(pipeline: str) -> None:
    assert (CONFIGS.parent / "pipelines" / f"{pipeline}.py").is_file()
    assert _compose(pipeline=pipeline).name in WITHOUT_DATA


@pytest.mark.parametrize(
    ("override", "got", "nearest"),
    [
        ("train.stepz=7", "stepz", "steps"),
        ("train.lr=1", "lr", "optimiser.lr"),
        ("device.thread=1", "thread", "threads"),
        ("trian.steps=3", "trian", "train.steps"),
        ("+trian.steps=3", "trian", "train.steps"),
        ("++lr=1", "lr", "train.optimiser.lr"),
        ("~trian", "trian", "train"),
        ("sed=1", "sed", "seed"),
        ("methd=piggyback", "methd", "method"),
        ("+experimnt=demo", "experimnt", "experiment"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_nearest_before_hydra_sees_it(override: str, got: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"{got!r}: did you mean {nearest!r}"):
        check_overrides([override])


def test_other_keys_pass_and_so_do_groups_of_a_users_own(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    others = ["+tasks.x.train=1", "hydra.run.dir=x", "hydra/job_logging=none", "+data@tasks.x.data=camvid", "data_root=x"]
    check_overrides(others)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    for option in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)], [search]):
        check_overrides([*option, "+recipe=short"])
    with pytest.raises(InputError, match="no option 'recipe'"):
        check_overrides(["+recipe=short"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=pigyback", "method=pigyback: did you mean 'piggyback'. expected one of affine, .*ewc, .*--config-dir"),
        ("experiment=dmo", "experiment=dmo: did you mean 'demo'. expected one of"),
        ("method.nam=ksm", r"method has no option 'nam' here: did you mean 'name'. it has name, .*\+method\.nam=VALUE"),
        ("tasks.shapez.data=x", r"tasks has no option 'shapez' here: did you mean 'shapes'."),
        ("+method=ksm", r"expected method=ksm without the plus"),
        ("train.stepz=7", "train has no option 'stepz'"),
    ],
)
def test_what_hydra_does_not_find_is_answered_with_what_is_known(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compose("image_to_image", ["experiment=demo", override])


def test_a_mistyped_key_of_a_file_is_answered_with_the_nearest() -> None:
    config = plain_config(compose("image_to_image", ["experiment=demo", "+trian={steps: 3}"]))  # as a YAML file brings it in
    with pytest.raises(InputError, match="'trian': did you mean 'train'"):
        read_experiment(config)


def test_a_method_that_a_file_describes_too_is_composed_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Hydra would take the defaults of the class for the schema of the file, were they called as the file is."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "ksm.yaml").write_text("defaults: [ksm_defaults]\nname: ksm\nstart: uniform\n")
    method = compose("image_to_image", ["method=ksm", f"hydra.searchpath=[file://{tmp_path}]"]).method
    assert (method.start, method.granularity) == ("uniform", "kernel")
    assert not [warning for warning in recwarn if "schema" in str(warning.message)]


def test_every_default_can_be_overridden_and_stands_in_the_class_alone() -> None:
    config = compose("image_to_image", ["experiment=demo"])
    assert set(paths_of(TrainOptions)) == set(paths_of(type(_compose("experiment=demo").train)))
    for path in paths_of(TrainOptions):
        assert OmegaConf.select(config.train, path, default="missing") != "missing", path
    shipped = (CONFIGS / "base.yaml").read_text() + (CONFIGS / "protocol" / "images.yaml").read_text()
    assert not [path for path in paths_of(TrainOptions) if path[-5:] != ".name" and f"{path.rpartition('.')[2]}:" in shipped]


ROOT = CONFIGS.parent
HEADS = sorted((CONFIGS / "experiment").glob("*.yaml")) + sorted((CONFIGS / "study").glob("*.yaml"))


def _commands() -> list[str]:
    """The commands in the heads of experiments and studies, less those to be filled in; tests/test_docs.py has the pages'."""
    lines = {line.lstrip("# ").rstrip() for head in HEADS for line in head.read_text(encoding="utf-8").splitlines()}
    scripts = tuple(f"python pipelines/{name}.py" for name in (*PIPELINES, "impresslearn"))
    return sorted(x for x in lines if x.startswith(scripts) and "..." not in x and not re.search(r"=(?!DATA\b)[A-Z]{4,}\b", x))


@pytest.mark.parametrize("command", _commands())
def test_a_command_in_the_head_of_a_config_composes(command: str) -> None:
    _, script, *overrides = shlex.split(command, comments=True)
    if Path(script).stem != "impresslearn":
        assert _compose(*overrides, pipeline=Path(script).stem).sequence
        return
    assert read_study(plain_config(compose("impresslearn", overrides))).seeds


@pytest.mark.parametrize(("task", "own"), [("denoising", True), ("super_resolution", True), ("colourisation", False)])
def test_what_restores_detail_is_trained_on_the_images_own_pixels_unless_told_otherwise(task: str, own: bool) -> None:
    def crops_are_cuts(**augmentation: object) -> bool:
        experiment = read_experiment(
            {
                "name": "scales",
                "out": "somewhere",
                "backbone": {"mode": "first_task", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3},
                "method": {"name": "piggyback"},
                "sequence": ["t"],
                "train": {"steps": 1, "batch_size": 6, "augmentation": {"crop": 32, "flip": False, **augmentation}},
                "tasks": {
                    "t": {
                        "task": {"kind": task},
                        "data": {"kind": "patterns", "size": 40, "count": {"train": 6, "val": 2, "test": 2}},
                    }
                },
            }
        )
        data = prepare(experiment, experiment.tasks[0])
        batch = data.batches(0).batch(0)
        images = [data.parts.train[i].image for i in range(len(data.parts.train))]
        cuts = {
            np.ascontiguousarray(image[y : y + 32, x : x + 32]).tobytes() for image in images for y in range(9) for x in range(9)
        }
        return all(crop.permute(1, 2, 0).contiguous().numpy().tobytes() in cuts for crop in batch.image)

    assert crops_are_cuts() is own
    assert crops_are_cuts(zoom=[1, 1])
    assert not crops_are_cuts(zoom=[0.8, 1.25])
