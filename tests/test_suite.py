"""A suite: its runs' command lines, and two methods run by processes of the pipeline and stored."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from img2img import InputError
from img2img.options import call_with
from img2img.pipeline import plain_config
from img2img.suite import Suite, backbone_jobs, describe, method_jobs, run_jobs
from img2img.training.experiment import read_experiment

ROOT = Path(__file__).parents[1]


def _suite(**changes: Any) -> Suite:
    made: Suite = call_with(
        Suite,
        {
            "name": "tiny",
            "title": "Two methods",
            "overrides": [
                "experiment=demo", "backbone=image_transformer", "backbone.width=4", "backbone.blocks=1", "own=null", "probe=1",
            ],
            "first": ["sequence=[shapes]"],
            "seeds": [0],
            "methods": {
                "masks": {"title": "Masks", "group": "mask", "overrides": ["method=piggyback"]},
                "tuned": {"title": "Tuned", "group": "reference", "overrides": ["method=finetune"]},
            },
            **changes,
        },
        what="suite",
    )
    return made


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "suite").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_run_of_a_shipped_suite_composes_and_is_accepted(file: Path, tmp_path: Path) -> None:
    suite: Suite = call_with(Suite, OmegaConf.to_container(OmegaConf.load(file), resolve=True), what=file.name)  # type: ignore[arg-type]
    assert suite.name == file.stem
    more = ["data_root=somewhere"]
    jobs = backbone_jobs(suite, tmp_path, [0], more) + method_jobs(suite, tmp_path, list(suite.methods), suite.seeds, more)
    assert len({job.folder for job in jobs}) == len(jobs)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        first = None
        for job in jobs:
            experiment = read_experiment(plain_config(compose(suite.pipeline, job.overrides)))
            # Every method of a seed takes the backbone that its first job trains, but for those that want another.
            if job.seed == 0 and (job.label == "backbone" or experiment.first_from is not None):
                fingerprint = experiment.fingerprint(experiment.sequence[0], backbone=True)
                first = first or fingerprint
                assert fingerprint == first


def test_methods_of_one_seed_come_together_and_a_method_may_have_fewer_seeds(tmp_path: Path) -> None:
    methods = {
        "a": {"title": "A", "group": "mask", "overrides": ["method=piggyback"]},
        "b": {"title": "B", "group": "mask", "overrides": ["method=affine"], "seeds": [5]},
    }
    jobs = method_jobs(_suite(methods=methods), tmp_path, ["a", "b"], [5, 6], ["train.steps=3"])
    assert [(job.label, job.seed) for job in jobs] == [("a", 5), ("b", 5), ("a", 6)]
    assert jobs[1].overrides[-3:] == ["train.steps=3", "seed=5", f"out={tmp_path / 'b' / '5'}"]
    assert f"first_from={tmp_path / 'backbone' / '5'}" in jobs[1].overrides
    with pytest.raises(InputError, match="no method 'c'; it has a, b"):
        method_jobs(_suite(methods=methods), tmp_path, ["c"], [5], [])


def test_a_suite_runs_stores_and_sums_up_and_a_failure_is_named(tmp_path: Path) -> None:
    suite, pipeline, store = _suite(), ROOT / "pipelines" / "image_to_image.py", tmp_path / "store"
    small = ["sequence=[shapes,landscape]", "decoder_only=[]", "train.steps=2", "train.val_every=2", "threads=1"]
    small += ["train.norm_batches=2"]
    small += [f"tasks.{name}.data.count={{train: 4, val: 2, test: 2}}" for name in ("shapes", "landscape")]
    first = [s for s in small if not s.startswith("sequence")]
    assert run_jobs(pipeline, backbone_jobs(suite, tmp_path, [0], first), parallel=1, store=None) == []
    jobs = method_jobs(suite, tmp_path, ["masks", "tuned"], [0], small)
    assert run_jobs(pipeline, jobs, parallel=2, store=store) == []
    describe(suite, store)
    summary = json.loads((store / "summary.json").read_text())
    assert set(summary["methods"]) == {"masks", "tuned"}
    for label in ("masks", "tuned"):
        results = json.loads((tmp_path / label / "0" / "results.json").read_text())
        for task in results["tasks"]:
            cell = summary["methods"][label][task["name"]]
            assert (cell["mean"], cell["std"], cell["seeds"], cell["bytes"]) == (task["value"], None, 1, task["bytes"])
    assert not list(store.rglob("*.safetensors")), "weights are not kept"
    broken = method_jobs(suite, tmp_path / "other", ["tuned"], [0], [*small, "train.stepz=1"])
    assert run_jobs(pipeline, broken, parallel=1, store=store) == broken
    assert "stepz" in (broken[0].folder / "console.txt").read_text()
