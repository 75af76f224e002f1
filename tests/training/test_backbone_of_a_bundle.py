"""New tasks on the backbone of a bundle that is there already."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from killing import killed_at

import img2img
from img2img import InputError
from img2img.api import add_task as train_new_task
from img2img.bundle import delete_task_from_bundle, load_bundle, read_bundle, task_path
from img2img.bundle.join import join_bundles
from img2img.training.config import read_experiment
from img2img.training.run import run

Make = Callable[..., dict[str, Any]]
FEW = {
    "steps": 6,
    "batch_size": 2,
    "log_every": 3,
    "augmentation": {"crop": 32},
    "validation": {"every": 3, "precise_bn_batches": 0},
}
IMPRESS = {"name": "impresslearn", "basis": "shared"}


def _with(config: dict[str, Any], task: str, **changes: Any) -> dict[str, Any]:
    tasks = {**config["tasks"], task: {**config["tasks"][task], **changes}}
    return {**config, "tasks": tasks}


def _files(bundle: Path) -> dict[str, bytes]:
    """Every file of a bundle, byte for byte."""
    return {str(path.relative_to(bundle)): path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def base(config_in: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two tasks, to be read or copied."""
    folder = tmp_path_factory.mktemp("base")
    run(config_in(folder, sequence=["disks", "colour"]))
    return folder


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"masks": {"trainable_copies": ["decoder.1.*"], "norm": "statistics"}}, {}),
        (
            {"device": {"accelerator": "cpu", "channels_last": False}, "masks": {"select": ["decoder.*"]}},
            {"start_from": "colour"},
        ),
        ({}, {"start_from": "nearest"}),
        ({"masks": {"bases": {"shared": {"tasks": ["colour"]}}}}, {"method": IMPRESS}),
    ],
    ids=["own weights", "start_from", "nearest", "basis"],
)
def test_a_task_is_the_one_that_the_sequence_would_have_learned(
    config: Make, tmp_path: Path, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    whole = _with(config(out=str(tmp_path / "whole"), **options), "edges", **changes)
    run({**whole, "sequence": ["disks", "colour"]})
    shutil.copytree(tmp_path / "whole", tmp_path / "base")
    run(whole)
    more = config(backbone={"mode": "bundle", "weights": str(tmp_path / "base")}, sequence=["edges"], **options)
    more["masks"] = {key: value for key, value in more.get("masks", {}).items() if key != "select"}  # the bundle says it
    results = run(_with(more, "edges", **changes))
    assert [task["name"] for task in results["tasks"]] == ["edges"]
    assert results["backbone"]["mode"] == "bundle"
    assert list((tmp_path / "run" / "bundle" / "tasks").iterdir()) == [
        tmp_path / "run" / "bundle" / "tasks" / "edges.safetensors"
    ]
    assert join_bundles(tmp_path / "base", [tmp_path / "run"]) == ["disks", "colour", "edges"]
    assert _files(tmp_path / "base" / "bundle") == _files(tmp_path / "whole" / "bundle")
    again = run(_with(more, "edges", **changes))  # the task is in the bundle by now
    assert [task["value"] for task in again["tasks"]] == [task["value"] for task in results["tasks"]]


@pytest.mark.slow
def test_a_basis_of_the_bundle_is_used_under_its_name_and_no_other_one_takes_it(config: Make, tmp_path: Path) -> None:
    bases = {"shared": {"tasks": ["disks", "colour"]}, "other": {"count": 3, "density": 0.5, "seed": 1}}
    base = config(out=str(tmp_path / "base"), masks={"bases": bases}, backbone={**config()["backbone"], "mode": "random"})
    whole = _with(base, "edges", method=IMPRESS)
    run(whole)
    more = config(backbone={"mode": "bundle", "weights": str(tmp_path / "base")}, sequence=["late"])
    late = {**config()["tasks"]["edges"], "method": IMPRESS}
    more["tasks"] = {"late": late}
    run(more)
    network, _ = load_bundle(tmp_path / "run" / "bundle")
    assert network.bases()["shared"].sha256 == load_bundle(tmp_path / "base" / "bundle")[0].bases()["shared"].sha256
    more |= {"out": str(tmp_path / "third"), "masks": {"bases": {"shared": {"count": 2, "density": 0.5, "seed": 1}}}}
    with pytest.raises(InputError, match=r"bases\.shared is another one"):
        run(more)
    with pytest.raises(InputError, match=r"'none'.*masks.bases.*\['shared'\]"):
        read_experiment({**more, "masks": {}, "tasks": {"late": {**late, "method": {**IMPRESS, "basis": "none"}}}})


def test_a_killed_run_on_a_bundle_goes_on_and_ends_bit_equal(config: Make, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    more = _with(config(sequence=["edges"], backbone={"mode": "bundle", "weights": str(tmp_path / "base" / "bundle")}), "edges")
    more = _with(more, "edges", start_from="colour")
    run({**more, "out": str(tmp_path / "whole")})
    with killed_at(7):
        run(more)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.pt")] == ["edges.pt"]
    (tmp_path / "base").rename(tmp_path / "moved")
    more["backbone"]["weights"] = str(tmp_path / "moved")
    run(more)
    assert _files(tmp_path / "run" / "bundle") == _files(tmp_path / "whole" / "bundle")
    other = config(out=str(tmp_path / "other"), sequence=["disks", "colour"], seed=1)
    run(other)
    more["backbone"]["weights"] = str(tmp_path / "other")
    with pytest.raises(InputError, match="'edges' under another config"):
        run(more)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": ["colour"]}, "bundle has a task 'colour' already: give the new one another name"),
        ({"masks": {"select": ["encoder.*"]}}, "select=.*: leave masks.select out"),
        ({"backbone": {"mode": "bundle", "weights": "BASE", "width": 4}}, r"leave out \['width'\]"),
        ({"backbone": {"mode": "bundle"}}, "give backbone.weights"),
        ({"backbone": {"mode": "bundle", "weights": "nowhere"}}, "no bundle in nowhere"),
    ],
    ids=["name", "select", "options", "no folder", "nowhere"],
)
def test_what_does_not_fit_the_bundle_is_refused(
    config: Make, base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    more = config(backbone={"mode": "bundle", "weights": "BASE"}, sequence=["edges"]) | changes
    more = json.loads(json.dumps(more).replace('"BASE"', json.dumps(str(base))))
    with pytest.raises(InputError, match=message):
        run(more)
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_name_that_differs_from_one_of_the_bundle_in_case_alone_is_refused_before_training(
    config: Make, base: Path, tmp_path: Path
) -> None:
    more = config(backbone={"mode": "bundle", "weights": str(base)}, sequence=["Colour"])
    more["tasks"]["Colour"] = more["tasks"]["colour"]
    with pytest.raises(InputError, match=r"'Colour' differs from that of the task 'colour' in case alone.*another name"):
        run(more)
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_run_that_goes_on_keeps_what_was_added_to_its_bundle(config: Make, disk_data: Path, tmp_path: Path) -> None:
    """Also a run whose first task was not finished when the other came, and that is to learn one of the same name."""
    out, backbone = tmp_path / "run", {"mode": "random", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}
    one, two = (config(backbone=backbone, sequence=names) for names in (["colour"], ["colour", "edges"]))
    with killed_at(2):
        run(one, bars=False)
    data = {"kind": "image_folder", "root": str(disk_data / "train" / "images")}
    train_new_task(out, "edges", task={"kind": "denoising"}, data=data, train=FEW, out=tmp_path / "other")
    learned = task_path(out / "bundle", "edges").read_bytes()
    run(one, bars=False)
    assert read_bundle(out / "bundle")["tasks"] == ["edges", "colour"]
    with pytest.raises(InputError, match=r"'edges' already.*tasks delete"):
        run(two, bars=False)
    assert task_path(out / "bundle", "edges").read_bytes() == learned
    delete_task_from_bundle(out / "bundle", "edges")
    for step in (1, 6):  # before and after the first checkpoint
        with killed_at(step):
            run(two, bars=False)
        with pytest.raises(InputError, match=r"run still has to learn a task 'edges' .*another name"):
            train_new_task(out, "edges", task={"kind": "denoising"}, data=data, train=FEW, out=tmp_path / "third")
        assert not (tmp_path / "third").exists()
        with pytest.raises(InputError, match=r"run still has to learn a task 'edges' .*another name"):
            join_bundles(out, [tmp_path / "other"])
        assert read_bundle(out / "bundle")["tasks"] == ["colour"]
    run(two, bars=False)
    assert {name: info.kind for name, info in img2img.load(out).tasks.items()} == {"colour": "colourisation", "edges": "edges"}


def test_a_run_never_replaces_a_bundle_of_other_tasks(config: Make, tmp_path: Path) -> None:
    """Copied there by hand, under a name of the run's that it has begun, or on another backbone."""
    backbone = {"mode": "random", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}
    run(config(out=str(tmp_path / "other"), backbone=backbone, sequence=["edges"]), bars=False)
    mine = config(backbone=backbone, sequence=["colour", "edges"])
    with killed_at(7):
        run(mine, bars=False)
    shutil.rmtree(tmp_path / "run" / "bundle")
    shutil.copytree(tmp_path / "other" / "bundle", tmp_path / "run" / "bundle")
    before = _files(tmp_path / "run")
    with pytest.raises(InputError, match=r"run/bundle has a task 'edges' already"):
        run(mine, bars=False)
    for changes in ({"seed": 1, "backbone": backbone}, {}):  # another one, or one that the first task is to train
        with pytest.raises(InputError, match=r"has the tasks edges, .*on another backbone .*out="):
            run(config(out=str(tmp_path / "run"), sequence=["disks"], **changes), bars=False)
    assert _files(tmp_path / "run") == before


@pytest.mark.parametrize("mode", ["first_task", "random"])
def test_a_backbone_in_half_precision_takes_half_the_bytes_and_gives_the_same_outputs(
    config: Make, tmp_path: Path, mode: str
) -> None:
    made = config(sequence=["disks", "edges"], out=str(tmp_path / "half"))
    results = run(made | {"backbone": {**made["backbone"], "mode": mode, "half": True}})
    file = tmp_path / "half" / "bundle" / "backbone.safetensors"
    stored = safetensors.torch.load_file(file)
    weights = {name: t for name, t in stored.items() if t.ndim > 1}
    assert {t.dtype for t in weights.values()} == {torch.float16}
    assert any(t.abs().max() > 0 for t in weights.values())
    assert results["backbone"]["bytes"] == results["shared_bytes"] == sum(t.nbytes for t in stored.values())
    network, _ = load_bundle(tmp_path / "half" / "bundle")
    assert {t.dtype for name, t in network.backbone.state_dict().items() if name in weights} == {torch.float32}
    assert all(torch.equal(network.backbone.state_dict()[name], t.float()) for name, t in weights.items())
    again = run(made | {"backbone": {**made["backbone"], "mode": mode, "half": True}})
    assert [t["value"] for t in again["tasks"]] == [t["value"] for t in results["tasks"]]
    with pytest.raises(InputError, match="half"):
        read_experiment(made | {"backbone": {**made["backbone"], "half": "yes"}})
