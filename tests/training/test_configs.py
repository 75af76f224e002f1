"""Every config that is shipped composes and is accepted."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from img2img import InputError
from img2img.backbones import build_backbone
from img2img.cli.pipeline import plain_config
from img2img.research.impresslearn.options import read_study
from img2img.training.compose import check_overrides, compose, method_names
from img2img.training.config import Experiment, TrainOptions, read_experiment
from img2img.training.strategies import comparison_methods
from img2img.validation import paths_of

CONFIGS = Path(__file__).parents[2] / "configs"
PIPELINES = ("image_to_image", "cifar100", "imagenet_to_sketch", "decathlon")
"""The scripts that run one experiment."""
WITHOUT_DATA = ("demo", "cifar100_made", "domains_made", "decathlon_made")


def _names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def _compose(*overrides: str, pipeline: str = "image_to_image") -> Experiment:
    return read_experiment(plain_config(compose(pipeline, list(overrides))))


def _overrides(name: str) -> list[str]:
    return [f"experiment={name}", *(["data_root=somewhere"] if name not in WITHOUT_DATA else [])]


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


@pytest.mark.parametrize("backbone", [name for name in _names("backbone") if name != "bundle"])  # whose bundle is to be given
def test_a_backbone_config_builds(backbone: str) -> None:
    options = _compose(f"backbone={backbone}").backbone.options()
    assert build_backbone({**options, "weights": None, "out_channels": 2}).head_channels > 0


def test_any_subset_can_be_asked_for_on_the_command_line() -> None:
    experiment = _compose(
        "experiment=demo", "sequence=[edges,colour]", "train.steps=7", "+tasks.edges.train.augmentation.crop=32"
    )
    assert list(experiment.sequence) == ["edges", "colour"]
    assert experiment.tasks[0].train.steps == 7
    assert experiment.tasks[0].train.augmentation.crop == 32


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_script_runs_without_data_by_default(pipeline: str) -> None:
    assert (CONFIGS.parent / "pipelines" / f"{pipeline}.py").is_file()
    assert _compose(pipeline=pipeline).name in WITHOUT_DATA


def test_an_unknown_key_on_the_command_line_is_refused() -> None:
    with pytest.raises(ConfigCompositionException, match="stepz"):
        _compose("experiment=demo", "train.stepz=7")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("train.stepz=7", "steps"), ("train.lr=1", "optimiser.lr"), ("+tasks.x.train=1", None), ("device.thread=1", "threads")],
)
def test_a_mistyped_key_is_answered_with_the_nearest_before_hydra_sees_it(override: str, nearest: str | None) -> None:
    if nearest is None:
        check_overrides([override])
        return
    with pytest.raises(InputError, match=f"no option .*did you mean {nearest!r}"):
        check_overrides([override])


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
