"""Bundles joined into one: what runs side by side learned is what one sequence learns."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scripts import run_script
from torch import nn

import img2img
from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.bundle import (
    HEAD,
    add_task_to_bundle,
    bundle_folder,
    check_not_planned,
    delete_task_from_bundle,
    describe_backbone,
    join,
    load_bundle,
    read_bundle,
    save_backbone,
    stored_bytes,
)
from img2img.bundle.join import add_task_file, join_bundles
from img2img.files.lock import FolderInUseError, hold
from img2img.masks.storage import read_header
from img2img.training.compose import compose, plain_config
from img2img.training.config import read_experiment
from img2img.training.sequence import SequenceRunner
from img2img.training.task_data import check_own_bundle
from img2img.web.limits import TeachOptions
from img2img.web.server import serve

pytestmark = pytest.mark.usefixtures("without_curves")

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def network(*, seed: int = 0, width: int = 2, select: Any = None) -> MaskedNetwork:
    """A backbone without tasks."""
    torch.manual_seed(seed)
    backbone = build_backbone({"kind": "image_transformer", "width": width, "blocks": 0, "head_kernel": 1, "out_channels": 2})
    made = MaskedNetwork(backbone, head=HEAD, select=["*"] if select is None else select)
    made.spec = backbone.spec  # type: ignore[assignment]
    return made


def bundle(folder: Path, tasks: dict[str, int], *, basis: int | None = None, figure: float = 0.5, **options: Any) -> Path:
    """A bundle of `tasks`, name and seed of each, of which "impressed" combines the masks of a basis."""
    net = network(**options)
    save_backbone(folder, net, net.spec, options.get("select"))  # type: ignore[arg-type]
    if basis is not None:
        net.add_basis("shared", masks.Basis.random(net.layers(), count=2, density=0.5, seed=basis))
    for name, seed in tasks.items():
        torch.manual_seed(seed)
        method = masks.ImpressLearn(basis="shared") if name == "impressed" else masks.Piggyback(start="uniform")
        net.add_task(name, method, head=nn.Conv2d(options.get("width", 2), 6, 1))
        net.freeze_task(name)
        add_task_to_bundle(
            folder, net, name, options={"kind": "edges"}, info={"figures": {"MSE": figure}, "baseline": 2 * figure}
        )
    return folder


def test_tasks_and_bases_come_together_in_order_and_common_ones_once(tmp_path: Path) -> None:
    whole = bundle(tmp_path / "whole", {"first": 1, "b": 2, "impressed": 3, "c": 4}, basis=7)
    one = bundle(tmp_path / "one" / "bundle", {"first": 1, "b": 2}, figure=0.5)
    two = bundle(tmp_path / "two", {"first": 1, "impressed": 3}, basis=7)
    three = bundle(tmp_path / "three", {"first": 1, "c": 4})
    # On another machine the same task measured otherwise: it is the same task.
    other = bundle(tmp_path / "other", {"first": 1, "b": 2}, figure=0.50001)
    assert files(other / "tasks")["first.safetensors"] != files(one / "tasks")["first.safetensors"]
    joined = tmp_path / "joined"
    assert join_bundles(joined, [one.parent, two, three, other]) == ["first", "b", "impressed", "c"]
    assert files(joined) == files(whole)
    assert load_bundle(joined)[0].tasks() == ("first", "b", "impressed", "c")
    # Once more, into the bundle that is there now: nothing changes. And a run's folder stands for the bundle in it.
    assert join_bundles(joined, [three, joined]) == ["first", "b", "impressed", "c"]
    assert files(joined) == files(whole)
    assert join_bundles(one.parent, [three]) == ["first", "b", "c"]
    assert load_bundle(one)[0].tasks() == ("first", "b", "c")


def test_a_backbone_saved_again_keeps_the_tasks_unless_it_masks_other_weights(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "run" / "bundle", {"b": 2})
    net = network()
    for spec in (net.spec, {**net.spec, "out_channels": 5}):  # type: ignore[dict-item]
        check_own_bundle(tmp_path / "run", ["mine"], learned=[], backbone=describe_backbone(net, spec, None))  # type: ignore[arg-type]
        save_backbone(folder, net, spec)  # type: ignore[arg-type]
        assert read_bundle(folder)["tasks"] == ["b"]
    other = describe_backbone(net, net.spec, ["decoder.*"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"has the tasks b, .*another selection.*would be lost"):
        check_own_bundle(tmp_path / "run", ["mine"], learned=[], backbone=other)


def test_a_file_coded_relative_to_the_task_that_it_replaces_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", {"edges": 1})
    net, backbone = load_bundle(folder)
    net.add_task("v2", masks.Piggyback(start="uniform"), head=nn.Conv2d(2, 6, 1), start_from="edges")
    net.freeze_task("v2")
    info = {"task": {"kind": "edges"}, "figures": {"MSE": 0.5}}
    file = net.save_task("v2", tmp_path / "v2.safetensors", info=info, relative_to="edges")
    assert read_header(file)["relative_to"] is not None
    before = files(folder)
    with pytest.raises(InputError, match=r"coded relative to the task 'edges'.*another name"):
        add_task_file(folder, file, net, backbone, name="edges", replace=True)
    assert files(folder) == before
    assert add_task_file(folder, file, net, backbone) == "v2"


def test_a_backbone_with_tied_weights_is_stored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone({"kind": "lenet", "in_pixels": 16, "hidden": [8, 8], "out_channels": 3})
    layer = next(each for each in backbone.modules() if isinstance(each, nn.Linear) and each.in_features == each.out_features)
    backbone.again = nn.Linear(8, 8)  # type: ignore[assignment]
    backbone.again.weight = layer.weight  # type: ignore[union-attr]
    save_backbone(tmp_path, MaskedNetwork(backbone, head=HEAD), backbone.spec)
    stored = load_file(tmp_path / "backbone.safetensors")
    assert torch.equal(stored["again.weight"].float(), layer.weight)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"tasks": {"x": 1}, "seed": 1}, "another backbone"),
        ({"tasks": {"x": 1}, "width": 3}, "another backbone"),
        ({"tasks": {"x": 1}, "select": ["decoder.*"]}, "another selection of weights"),
        ({"tasks": {"first": 2}}, "'first'.*another name"),
        ({"tasks": {"impressed": 3}, "basis": 8}, "basis 'shared'"),
        ({"tasks": {}}, "no tasks"),
    ],
    ids=["weights", "shape", "select", "task", "basis", "empty"],
)
def test_what_does_not_belong_together_is_refused_and_nothing_is_written(
    tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    one = bundle(tmp_path / "one", {"first": 1, "impressed": 3}, basis=7)
    other = bundle(tmp_path / "other", **made)
    before = files(one)
    with pytest.raises(InputError, match=message):
        join_bundles(tmp_path / "joined", [one, other])
    assert not (tmp_path / "joined").exists()
    with pytest.raises(InputError, match=message):
        join_bundles(one, [other])
    assert files(one) == before


def test_weights_selected_by_other_patterns_are_the_same_where_they_are_the_same(tmp_path: Path) -> None:
    one = bundle(tmp_path / "one", {"first": 1})
    names = list(load_bundle(one)[0].roles.masked)
    other = bundle(tmp_path / "other", {"second": 2}, select=names)
    assert read_bundle(other)["select"] == names != read_bundle(one)["select"]
    assert join_bundles(one, [other]) == ["first", "second"]
    assert list(load_bundle(one)[0].tasks()) == ["first", "second"]


def test_damage_is_found_and_a_kill_leaves_the_bundle_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = bundle(tmp_path / "one", {"first": 1}), bundle(tmp_path / "two", {"b": 2})
    with pytest.raises(InputError, match="no bundles to join"):
        join_bundles(one, [])
    with pytest.raises(InputError, match="no bundle in"):
        join_bundles(one, [tmp_path / "nowhere"])
    damaged = tmp_path / "damaged"
    shutil.copytree(two, damaged)
    path = damaged / "tasks" / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="was changed after it was written"):
        join_bundles(one, [damaged])

    def killed(path: Path, value: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("img2img.bundle.join.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        join_bundles(one, [two])
    monkeypatch.undo()
    assert load_bundle(one)[0].tasks() == ("first",)
    assert join_bundles(one, [two]) == ["first", "b"]


def test_two_joins_and_a_deletion_at_a_time_lose_nothing_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads bundle.json and writes it again: the second waits until the first is done."""
    one = bundle(tmp_path / "one", {"first": 1, "old": 5})
    others = [bundle(tmp_path / name, {name: number}) for number, name in enumerate(("b", "c"), start=2)]
    inside, write = threading.Event(), join.write_json

    def slowly(path: Path, value: Any) -> Path:
        inside.set()
        time.sleep(0.3)
        return write(path, value)

    monkeypatch.setattr(join, "write_json", slowly)
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(join_bundles, one, others[:1])]
        assert inside.wait(60)
        started += [pool.submit(join_bundles, one, others[1:]), pool.submit(delete_task_from_bundle, one, "old")]
        for each in started:
            each.result()
    assert sorted(read_bundle(one)["tasks"]) == ["b", "c", "first"]
    assert sorted(load_bundle(one)[0].tasks()) == ["b", "c", "first"]
    assert not list(one.rglob("*.lock"))


def test_a_bundle_in_use_is_refused_in_the_end_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = bundle(tmp_path / "run" / "bundle", {"first": 1, "a": 2}), bundle(tmp_path / "two", {"b": 2})
    monkeypatch.setattr("img2img.bundle.folder.PATIENCE", 0.1)
    before = files(one)
    with hold(one):
        with pytest.raises(FolderInUseError, match="bundle is in use by"):
            join_bundles(one, [two])
        assert {name: content for name, content in files(one).items() if not name.endswith(".lock")} == before
    with hold(tmp_path / "run"), pytest.raises(FolderInUseError, match="run is in use by"):
        delete_task_from_bundle(one, "a")
    assert files(one) == before
    delete_task_from_bundle(one, "a")
    assert read_bundle(one)["tasks"] == ["first"]
    with pytest.raises(InputError, match="no bundle in"):
        delete_task_from_bundle(tmp_path / "nowhere", "a")
    assert not (tmp_path / "nowhere").exists()


def test_a_bundle_that_came_with_img2img_is_opened_by_name_and_never_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = bundle(tmp_path / "bundles" / "first", {"a": 1})
    other = bundle(tmp_path / "other", {"b": 2})
    monkeypatch.setattr("img2img.bundle.packaged.shipped_folder", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert bundle_folder("first") == packaged
    assert img2img.load("first").tasks.keys() == {"a"}
    before = files(packaged)
    learned = network()
    learned.add_task("c", masks.Piggyback(), head=nn.Conv2d(2, 6, 1))
    learned.freeze_task("c")
    changes: list[Callable[[], object]] = [
        lambda: join_bundles("first", [other]),
        lambda: join_bundles(packaged, [other]),
        lambda: join.import_adapter(tmp_path / "adapter", "first", "c"),
        lambda: delete_task_from_bundle(bundle_folder("first"), "a"),
        lambda: save_backbone(packaged, network(seed=1), network(seed=1).spec),  # type: ignore[arg-type]
        lambda: add_task_to_bundle(packaged, learned, "c", options={"kind": "edges"}, info={}),
        lambda: img2img.add_task("first", "c", task={"kind": "edges"}, data={"kind": "samples"}),
        lambda: serve("first", port=0, teach=TeachOptions()),
    ]
    for change in changes:
        with pytest.raises(InputError, match=r"came with img2img .* `img2img join my_first first`"):
            change()
    assert files(packaged) == before
    # The command that the message names makes a copy that can be changed; a folder of one's own comes first.
    assert join_bundles("my_first", ["first"]) == ["a"]
    assert join_bundles("my_first", [other]) == ["a", "b"]
    Path("first").mkdir()  # of results, for instance
    assert bundle_folder("first") == packaged
    shutil.copytree(other, "first", dirs_exist_ok=True)
    assert bundle_folder("first") == Path("first")


def test_runs_of_a_multirun_join_into_what_the_sequence_learns(tmp_path: Path) -> None:
    """The commands of docs/guides/devices.md, with less to learn."""
    small = [
        "experiment=demo", "compare.decoder_only=[]", "masks.trainable_copies=null", "backbone=image_transformer",
        "backbone.width=4", "backbone.blocks=0",
        "train.steps=3", "tasks.edges.train.steps=3", "train.validation.every=2", "train.validation.precise_bn_batches=2",
        "evaluation.panels=1",
        "evaluation.check_images=1", "device.threads=1", "device.accelerator=cpu",
        *(f"tasks.{name}.data.count={{train: 4, val: 2, test: 2}}" for name in ("shapes", "landscape", "edges")),
    ]  # fmt: skip

    def learn(out: str, sequence: str) -> None:
        config = plain_config(compose("image_to_image", [*small, f"out={tmp_path / out}", f"sequence={sequence}"]))
        SequenceRunner(read_experiment(config)).run()

    learn("first", "[shapes]")
    learn("whole", "[shapes,landscape,edges]")
    done = run_script(
        "image_to_image", "-m", *small, f"backbone_from={tmp_path / 'first'}", "sequence=[shapes,landscape],[shapes,edges]",
        f"out={tmp_path / 'side'}",
    )  # fmt: skip
    assert done.code == 0, done
    jobs = [tmp_path / "side" / number for number in ("0", "1")]
    for job, name in zip(jobs, ("landscape", "edges"), strict=True):
        log = (job / "log.txt").read_text()
        assert f"{name}: is learned (sparse_signs)" in log
        assert log.count("is learned") == 1, "the other job's lines are not in it"
        assert [task["name"] for task in json.loads((job / "results.json").read_text())["tasks"]] == ["shapes", name]
    assert sorted(path.name for path in (tmp_path / "side").iterdir()) == ["0", "1", "multirun.yaml"]
    assert join_bundles(tmp_path / "joined", jobs) == ["shapes", "landscape", "edges"]
    assert files(tmp_path / "joined") == files(tmp_path / "whole" / "bundle")
    options = ["experiment=demo", "backbone=bundle", f"backbone.weights={tmp_path / 'joined'}", "sequence=[tissue]"]
    more = read_experiment(plain_config(compose("image_to_image", options)))
    assert more.backbone.source is not None
    assert more.backbone.source.tasks == ("shapes", "landscape", "edges")
    assert {name: task.kind for name, task in img2img.load(str(tmp_path / "joined")).tasks.items()} == {
        "shapes": "segmentation", "landscape": "segmentation", "edges": "edges",
    }  # fmt: skip


def test_a_bundle_written_again_keeps_its_tasks_and_never_mixes_two_bases_of_one_name(tmp_path: Path) -> None:
    backbone = build_backbone({"kind": "lenet", "hidden": [12], "out_channels": 3})
    options = {"kind": "classification", "classes": ["a", "b", "c"]}

    def made(task: str, seed: int) -> MaskedNetwork:
        net = MaskedNetwork(backbone, head=HEAD)
        net.add_basis("shared", masks.Basis.random(net.layers(), count=2, density=0.5, seed=seed, kind="binary"))
        net.add_task(task, masks.ImpressLearn(basis="shared"), head=backbone.make_head(3))
        return net

    first, second = made("one", 0), made("two", 1)
    save_backbone(tmp_path, first, backbone.spec)
    add_task_to_bundle(tmp_path, first, "one", options=options, info={})
    before = files(tmp_path)
    save_backbone(tmp_path, second, backbone.spec)
    assert files(tmp_path) == before
    with pytest.raises(InputError, match=r"'one' .*basis 'shared'.*another name"):
        add_task_to_bundle(tmp_path, second, "two", options=options, info={})
    assert files(tmp_path) == before
    again = made("one", 1)
    add_task_to_bundle(tmp_path, again, "one", options=options, info={})  # of which no other task is
    assert load_bundle(tmp_path)[0].bases()["shared"].sha256 == again.bases()["shared"].sha256
    save_backbone(tmp_path, MaskedNetwork(build_backbone(backbone.spec), head=HEAD), backbone.spec)
    assert read_bundle(tmp_path)["tasks"] == []


@pytest.mark.parametrize("name", ["backbone.safetensors", "tasks/b.safetensors", "tasks/mine.txt", "bases/mine.safetensors"])
def test_files_of_something_else_are_neither_replaced_nor_joined_by_others(tmp_path: Path, name: str) -> None:
    one = bundle(tmp_path / "one", {"b": 2})
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    with pytest.raises(InputError, match=rf"mine has no bundle\.json, and holds {name}.*choose another"):
        join_bundles(tmp_path / "mine", [one])
    assert files(tmp_path / "mine") == {name: b"my own"}
    mine.unlink()
    (tmp_path / "mine" / "README.md").write_bytes(b"my own")
    assert join_bundles(tmp_path / "mine", [one]) == ["b"]


def test_a_first_join_that_was_killed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bundle(tmp_path / "one", {"first": 1, "impressed": 3}, basis=7)

    def killed(path: Path, value: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("img2img.bundle.join.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            join_bundles(tmp_path / "joined", [one])
    assert (tmp_path / "joined" / "backbone.safetensors").is_file()
    join_bundles(tmp_path / "joined", [one])
    assert files(tmp_path / "joined") == files(one)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"version": 3}', "version 3.*upgrade"), ("no JSON", "not valid JSON")],
)
def test_a_description_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path, content: str, message: str) -> None:
    folder = bundle(tmp_path / "bundle", {"b": 2})
    (folder / "bundle.json").write_text(content)
    before = files(folder)
    for seed in (0, 1):
        net = network(seed=seed)
        with pytest.raises(InputError, match=message):
            save_backbone(folder, net, net.spec)  # type: ignore[arg-type]
        assert files(folder) == before


def test_another_backbone_takes_the_files_of_the_earlier_ones_tasks_away(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", {"b": 2, "impressed": 3}, basis=7)
    (folder / "tasks" / "mine.txt").write_bytes(b"my own")
    net = network(seed=1)
    save_backbone(folder, net, net.spec)  # type: ignore[arg-type]
    assert files(folder).keys() == {"backbone.safetensors", "bundle.json", "tasks/mine.txt"}


def _with_task(name: str, *, task_seed: int = 9, **options: Any) -> MaskedNetwork:
    net = network(**options)
    torch.manual_seed(task_seed)
    net.add_task(name, masks.Piggyback(start="uniform"), head=nn.Conv2d(options.get("width", 2), 6, 1))
    return net


def _add(folder: Path, net: MaskedNetwork, name: str) -> None:
    add_task_to_bundle(folder, net, name, options={"kind": "edges"}, info={"figures": {"MSE": 0.5}, "baseline": 1.0})


def test_a_task_on_another_backbone_is_not_added(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", {"b": 2})
    before = files(folder)
    with pytest.raises(InputError, match=r"'c' has the backbone .*expected that of the bundle.*train it"):
        _add(folder, _with_task("c", seed=1), "c")
    assert files(folder) == before


def test_a_replaced_task_keeps_its_place_and_one_that_others_need_stays(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle", {"edges": 1, "b": 2})
    _add(folder, _with_task("edges"), "edges")
    assert read_bundle(folder)["tasks"] == ["edges", "b"]
    net, backbone = load_bundle(folder)
    net.add_task("v2", masks.Piggyback(start="uniform"), head=nn.Conv2d(2, 6, 1), start_from="edges")
    info = {"task": {"kind": "edges"}, "figures": {"MSE": 0.5}}
    add_task_file(folder, net.save_task("v2", tmp_path / "v2.safetensors", info=info, relative_to="edges"), net, backbone)
    before = files(folder)
    with pytest.raises(InputError, match=r"v2 are coded relative to those of 'edges'.*delete those first"):
        _add(folder, _with_task("edges", task_seed=10), "edges")
    assert files(folder) == before
    assert load_bundle(folder)[0].tasks() == ("edges", "b", "v2")


def test_damaged_tasks_are_deleted_one_by_one_and_bases_in_doubt_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = bundle(tmp_path / "bundle", {"a": 1, "impressed": 3, "b": 2, "c": 4}, basis=7)
    for name in ("a", "b"):
        (folder / "tasks" / f"{name}.safetensors").write_bytes(b"xx")
    with pytest.raises(InputError, match=r"no task 'bb' .*did you mean 'b'\? expected one of a, impressed, b, c"):
        delete_task_from_bundle(folder, "bb")
    delete_task_from_bundle(folder, "impressed")
    assert "a, b are missing or damaged" in caplog.text
    assert list(read_bundle(folder)["bases"]) == ["shared"]
    assert len(list((folder / "bases").iterdir())) == 1
    delete_task_from_bundle(folder, "a")
    assert list(read_bundle(folder)["bases"]) == ["shared"]
    caplog.clear()
    delete_task_from_bundle(folder, "b")
    assert caplog.text == ""
    assert not list((folder / "bases").iterdir())
    assert load_bundle(folder)[0].tasks() == ("c",)


@pytest.mark.parametrize(("name", "message"), [("B", "'B' differs from .*'b' in case alone"), ("Aux", "Windows reserves")])
def test_a_name_that_other_systems_cannot_have_as_a_file_is_no_new_one(tmp_path: Path, name: str, message: str) -> None:
    folder, loose = bundle(tmp_path / "bundle", {"b": 2}), tmp_path / "loose.safetensors"
    net, backbone = load_bundle(folder)
    net.save_task("b", loose)
    # By an earlier version, whose bundles still open.
    other = bundle(tmp_path / "other", {"x": 3})
    (other / "tasks" / "x.safetensors").rename(other / "tasks" / f"{name}.safetensors")
    (other / "bundle.json").write_text(json.dumps(read_bundle(other) | {"tasks": [name]}))
    assert load_bundle(other)[0].tasks() == (name,)
    before = files(folder)
    for change in (
        lambda: _add(folder, _with_task(name), name),
        lambda: add_task_file(folder, loose, net, backbone, name=name),
        lambda: join_bundles(folder, [other]),
        lambda: join.import_adapter(tmp_path / "adapter", folder, name),
    ):
        with pytest.raises(InputError, match=rf"{message}.*choose another"):
            change()
    assert files(folder) == before
    assert join_bundles(other, [folder] if name == "Aux" else [other]) == ([name, "b"] if name == "Aux" else [name])
    delete_task_from_bundle(other, name)


def test_a_planned_name_is_taken_in_any_case(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "run" / "bundle", {"b": 2})
    (tmp_path / "run" / "progress.json").write_text(json.dumps({"planned": ["b", "Sky"], "tasks": {"b": {}}}))
    check_not_planned(folder, ["c"])
    with pytest.raises(InputError, match=r"still has to learn a task 'Sky'.*another name"):
        check_not_planned(folder, ["sky"])


def test_the_bytes_of_a_backbone_are_those_of_its_file(tmp_path: Path) -> None:
    net = network(width=8)
    with torch.no_grad():
        for index, parameter in enumerate(net.backbone.parameters()):
            parameter.copy_(parameter if index == 0 else parameter.half().float())
    save_backbone(tmp_path, net, net.spec)  # type: ignore[arg-type]
    stored, state = load_file(tmp_path / "backbone.safetensors"), net.backbone.state_dict()
    size = stored_bytes(state)
    assert size == sum(t.nbytes for t in stored.values()) < sum(t.nbytes for t in state.values())
    header = int.from_bytes((tmp_path / "backbone.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "backbone.safetensors").stat().st_size == size + 8 + header
