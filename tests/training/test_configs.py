"""Every config that is shipped composes and is accepted."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from img2img.backbones import build_backbone
from img2img.cli.pipeline import plain_config
from img2img.masks import METHODS, build_method
from img2img.research.impresslearn.options import read_study
from img2img.tasks import build_task, task_class
from img2img.training.experiment import Experiment, read_experiment
from img2img.training.strategy import STRATEGIES, build_strategy

CONFIGS = Path(__file__).parents[2] / "configs"
PIPELINES = ("image_to_image", "cifar100", "imagenet_to_sketch", "decathlon")
"""The scripts that run one experiment."""
WITHOUT_DATA = ("demo", "cifar100_made", "domains_made", "decathlon_made")


def _names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def _compose(*overrides: str, pipeline: str = "image_to_image") -> Experiment:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return read_experiment(plain_config(compose(pipeline, list(overrides))))


def _overrides(name: str) -> list[str]:
    return [f"experiment={name}", *(["data_root=somewhere"] if name not in WITHOUT_DATA else [])]


@pytest.mark.parametrize("name", _names("experiment"))
def test_an_experiment_composes_and_its_tasks_are_known(name: str) -> None:
    experiment = _compose(*_overrides(name))
    assert experiment.name == name
    for task in experiment.sequence:
        options = dict(experiment.task(task).task)
        if task_class(options["kind"]).has_classes:
            options["classes"] = ["a", "b"]
        assert build_task(options).kind == options["kind"]


@pytest.mark.parametrize("method", _names("method"))
def test_a_method_config_is_accepted(method: str) -> None:
    options = dict(_compose(f"method={method}", "+bases.impressions={count: 10, density: 0.1, seed: 0}").method)
    name = options.pop("name")
    if name in STRATEGIES:
        build_strategy({"name": name, **options})
        assert {field.name for field in fields(STRATEGIES[name]) if field.init} == set(options), "a config names every option"
        return
    assert build_method(name, options).options() == options, "a config names every option, so that all can be overridden"


def test_every_method_has_a_config() -> None:
    composed = {"mixed"}  # of another method and the experiment's `own`
    assert METHODS.keys() - composed | STRATEGIES.keys() <= set(_names("method"))


@pytest.mark.parametrize("backbone", [name for name in _names("backbone") if name != "bundle"])  # whose bundle is to be given
def test_a_backbone_config_builds(backbone: str) -> None:
    options = _compose(f"backbone={backbone}").backbone_options
    assert build_backbone({**options, "weights": None, "out_channels": 2}).head_channels > 0


def test_any_subset_can_be_asked_for_on_the_command_line() -> None:
    experiment = _compose("experiment=demo", "sequence=[edges,colour]", "train.steps=7", "+tasks.edges.train.crop=32")
    assert list(experiment.sequence) == ["edges", "colour"]
    assert experiment.train_options("edges").steps == 7
    assert experiment.train_options("edges").crop == 32


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_script_runs_without_data_by_default(pipeline: str) -> None:
    assert (CONFIGS.parent / "pipelines" / f"{pipeline}.py").is_file()
    assert _compose(pipeline=pipeline).name in WITHOUT_DATA


def test_an_unknown_key_on_the_command_line_is_refused() -> None:
    with pytest.raises(ConfigCompositionException, match="stepz"):
        _compose("experiment=demo", "train.stepz=7")


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
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert read_study(plain_config(compose("impresslearn", overrides))).seeds
