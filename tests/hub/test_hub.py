"""Sharing: a folder in the hub's form, its card, and the Hub, which is a fake here: nothing may reach a network."""

import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

import img2img
from img2img import InputError, MaskedNetwork, hub, masks
from img2img.backbones import build_backbone
from img2img.bundle import add_task_to_bundle, delete_task_from_bundle, load_bundle, read_bundle, save_backbone
from img2img.bundle.join import join_bundles
from img2img.tasks import build_task

TASKS: dict[str, dict[str, Any]] = {
    "disks": {"kind": "segmentation", "classes": ["ground", "disk"]},
    "sky": {"kind": "segmentation", "classes": ["ground", "sky"]},
    "colour": {"kind": "colourisation"},
}
FIGURES = {"disks": {"mIoU": 0.75}, "sky": {"mIoU": 0.5}, "colour": {"ab error": 123.456}}
SHARED = ["README.md", "backbone.safetensors", "bundle.json", "config.json", "tasks"]
IMAGE = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a test wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: bundle, results, config."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    backbone = build_backbone({"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3, "out_channels": 2})
    network = MaskedNetwork(backbone, head="head")
    save_backbone(folder / "bundle", network, backbone.spec)
    entries = []
    for name, options in TASKS.items():
        task = build_task(options)
        network.add_task(name, masks.Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
        add_task_to_bundle(folder / "bundle", network, name, options=task.options(), info={"figures": FIGURES[name]})
        value = FIGURES[name][task.metric]
        entries.append({"name": name, "baseline": 0.25, "test_images": 7, "value": value, "steps": 500, "train_seconds": 100})
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(
        "backbone: {weights: /home/someone/weights.pt}\n"
        "tasks:\n"
        "  disks: {data: {kind: scenes, size: 64}}\n"
        "  sky: {data: {kind: scenes, size: 64}}\n"
        "  colour: {data: {kind: image_folder, root: /home/someone/photos, resize: 96}}\n"
    )
    results = {"backbone": {"sha256": network.backbone_sha256}, "tasks": entries, "forgetting": {"max_abs_output_change": 0.0}}
    results["environment"] = {"device": "an [old] one", "torch": "2.11", "commit": None}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def same_outputs(one: Any, other: Any) -> bool:
    assert list(one.tasks) == list(other.tasks) == list(TASKS)
    return all(torch.equal(one.predict(task, IMAGE), other.predict(task, IMAGE)) for task in TASKS)


# ---------------------------------------------------------------------- folders


def test_a_folder_gives_the_same_outputs_bit_for_bit(run: Path, tmp_path: Path) -> None:
    folder = img2img.save_pretrained(run, tmp_path / "shared")
    assert same_outputs(img2img.load(run), img2img.from_pretrained(folder))
    assert same_outputs(img2img.load(run), img2img.from_pretrained(str(folder), device="cpu"))
    assert sorted(p.name for p in folder.iterdir()) == SHARED
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]  # nothing temporary is left


def test_a_network_is_shared_as_well_as_a_bundle(run: Path, tmp_path: Path) -> None:
    network, _ = load_bundle(run / "bundle")
    network.delete_task("sky")
    model = img2img.from_pretrained(hub.save_pretrained(network, tmp_path / "shared"))
    assert list(model.tasks) == ["disks", "colour"]
    assert torch.equal(model.predict("colour", IMAGE), img2img.load(run).predict("colour", IMAGE))
    assert "0.75" in (tmp_path / "shared" / "README.md").read_text()
    network.add_task("new", masks.Piggyback(), head=torch.nn.Conv2d(4, 3, 1))
    with pytest.raises(InputError, match=r"\['new'\] do not say what they are"):
        hub.save_pretrained(network, tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]


def test_bases_are_shared_too(tmp_path: Path) -> None:
    backbone = build_backbone({"kind": "lenet", "hidden": [12], "out_channels": 3})
    network = MaskedNetwork(backbone, head="head")
    task = build_task({"kind": "classification", "classes": ["a", "b", "c"]})
    for name in ("one", "two"):
        network.add_task(name, masks.Piggyback(start="uniform"), head=backbone.make_head(3))
        network.freeze_task(name)
    network.add_basis("both", masks.basis_of_tasks(network, ["one", "two"]))
    network.add_task("three", masks.ImpressLearn(basis="both"), head=backbone.make_head(3))
    save_backbone(tmp_path / "bundle", network, backbone.spec)
    add_task_to_bundle(tmp_path / "bundle", network, "three", options=task.options(), info={})
    folder = hub.save_pretrained(tmp_path / "bundle", tmp_path / "shared")
    assert len(list((folder / "bases").iterdir())) == 1
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(load_bundle(folder)[0](x, task="three"), network.eval()(x, task="three"))


def test_a_shared_folder_is_replaced_and_any_other_refused(run: Path, tmp_path: Path) -> None:
    fewer = shutil.copytree(run, tmp_path / "fewer")
    delete_task_from_bundle(fewer / "bundle", "sky")
    folder = hub.save_pretrained(run, tmp_path / "shared")
    hub.save_pretrained(fewer, folder)
    assert sorted(p.stem for p in (folder / "tasks").iterdir()) == ["colour", "disks"]
    hub.save_pretrained(run, folder)
    assert sorted(p.stem for p in (folder / "tasks").iterdir()) == sorted(TASKS)
    hub.save_pretrained(folder, folder, license="mit")  # a new card
    assert sorted(p.stem for p in (folder / "tasks").iterdir()) == sorted(TASKS)
    (tmp_path / "empty").mkdir()
    hub.save_pretrained(run, tmp_path / "empty")
    for name in ("notes.txt", ".git"):
        clone = shutil.copytree(folder, tmp_path / f"with {name}")
        (clone / name).write_text("mine")
        with pytest.raises(InputError, match=rf"something else.* \({name}\)"):
            hub.save_pretrained(run, clone)
        assert (clone / name).read_text() == "mine"
    (tmp_path / "readme").mkdir()
    (tmp_path / "readme" / "README.md").write_text("of something else")
    with pytest.raises(InputError, match=r"no bundle\.json"):
        hub.save_pretrained(run, tmp_path / "readme")


def test_no_tasks_are_lost_that_were_not_shared_from_here(run: Path, tmp_path: Path) -> None:
    """A bundle has the names of a shared one; what in it was not written by `save_pretrained` may be there and nowhere else."""
    folder = hub.save_pretrained(run, tmp_path / "shared")
    other = shutil.copytree(run, tmp_path / "other")
    for target in (other / "bundle", run / "bundle"):
        with pytest.raises(InputError, match=r"bundle of the run in .*would be lost"):
            hub.save_pretrained(run, target)
    shutil.copytree(folder, other / "bundle", dirs_exist_ok=True)  # even with a card
    with pytest.raises(InputError, match=r"bundle of the run in .*would be lost"):
        hub.save_pretrained(run, other / "bundle")
    alone = shutil.copytree(run / "bundle", tmp_path / "alone")
    with pytest.raises(InputError, match=r"something else.* \(no config\.json, no README\.md\)"):
        hub.save_pretrained(run, alone)
    with pytest.raises(InputError, match="lies within the bundle"):
        hub.save_pretrained(alone, alone / "tasks" / "shared")

    foreign = shutil.copytree(folder, tmp_path / "foreign")
    (foreign / "config.json").write_text('{"library_name": "timm"}')
    with pytest.raises(InputError, match=r"config\.json of another library"):
        hub.save_pretrained(run, foreign)
    for name in ("tasks/mine.safetensors", "bases/mine.safetensors", "tasks/notes.txt"):
        clone = shutil.copytree(folder, tmp_path / name.replace("/", "_"))
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("mine")
        for source in (run, clone):
            with pytest.raises(InputError, match=rf"something else.* \({name}\)"):
                hub.save_pretrained(source, clone)
        assert (clone / name).read_text() == "mine"

    network, backbone = load_bundle(run / "bundle")
    task = build_task(TASKS["sky"])
    network.add_task("added", masks.Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
    add_task_to_bundle(folder, network, "added", options=task.options(), info={})
    with pytest.raises(InputError, match=r"something else.* \(tasks/added\.safetensors\)"):
        hub.save_pretrained(run, folder)
    hub.save_pretrained(folder, folder)
    assert (folder / "tasks" / "added.safetensors").is_file()


def test_a_failure_leaves_the_earlier_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.save_pretrained(run, tmp_path / "shared")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "bundle" / "tasks" / "sky.safetensors").unlink()
    with pytest.raises(InputError, match=r"no tasks/sky\.safetensors"):
        hub.save_pretrained(broken, folder)
    real = os.replace
    (tmp_path / ".shared.4194304.tmp").mkdir()  # what a killed process left: no machine has so many
    for error in (OSError("the disk is gone"), KeyboardInterrupt("at this moment")):

        def no_rename(source: Any, target: Any, error: BaseException = error) -> None:
            if Path(source).name.endswith(".tmp") and Path(target) == folder:
                raise error
            real(source, target)

        monkeypatch.setattr(os, "replace", no_rename)
        with pytest.raises(type(error), match=str(error)):
            hub.save_pretrained(run, folder)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "shared"]


def another(folder: Path, name: str) -> Callable[[], Path]:
    """What adds a task to a bundle, or replaces the one of that name, in another way than by sharing."""
    network, backbone = load_bundle(folder)
    if name in network.tasks():
        network.delete_task(name)
    task = build_task(TASKS["sky"])
    network.add_task(name, masks.Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
    return lambda: add_task_to_bundle(folder, network, name, options=task.options(), info={"figures": {"mIoU": 0.9}})


def add_another(folder: Path, name: str) -> None:
    another(folder, name)()


def test_a_task_that_comes_while_a_folder_is_shared_anew_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.save_pretrained(run, tmp_path / "shared")
    adding = threading.Thread(target=another(folder, "late"))
    real = hub.folder.model_card

    def card(*args: Any, **kwargs: Any) -> Any:
        adding.start()
        adding.join(0.5)
        return real(*args, **kwargs)

    monkeypatch.setattr(hub.folder, "model_card", card)
    hub.save_pretrained(folder, folder)
    adding.join()
    assert list(load_bundle(folder)[0].tasks()) == [*TASKS, "late"]
    assert sorted(p.name for p in folder.iterdir()) == SHARED
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]


def test_two_that_share_into_one_folder_take_turns(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.save_pretrained(run, tmp_path / "shared")
    real, other = os.replace, threading.Thread(target=hub.save_pretrained, args=(run, folder), kwargs={"license": "mit"})

    def replace(source: Any, target: Any) -> None:
        real(source, target)
        if str(target).endswith(".old") and other.ident is None:  # between the two renames
            other.start()
            other.join(0.5)

    monkeypatch.setattr(os, "replace", replace)
    hub.save_pretrained(run, folder)
    other.join()
    assert "license: mit" in (folder / "README.md").read_text(), "the second was the last"
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]


def test_what_a_killed_save_put_aside_comes_back(run: Path, tmp_path: Path) -> None:
    folder = hub.save_pretrained(run, tmp_path / "shared")
    add_another(folder, "added")  # nowhere else
    folder.rename(tmp_path / ".shared.4194304.old")  # no machine has so many
    (tmp_path / ".shared.saving").mkdir()
    with pytest.raises(InputError, match=r"something else.* \(tasks/added\.safetensors\)"):
        hub.save_pretrained(run, folder)
    hub.save_pretrained(folder, folder)
    assert (folder / "tasks" / "added.safetensors").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]


def test_a_link_to_a_shared_folder_stays_one(run: Path, tmp_path: Path) -> None:
    folder, link = hub.save_pretrained(run, tmp_path / "there" / "shared"), tmp_path / "link"
    link.symlink_to(folder)
    assert hub.save_pretrained(run, link, license="mit") == link
    assert link.is_symlink()
    assert "license: mit" in (folder / "README.md").read_text()
    assert [p.name for p in folder.parent.iterdir()] == ["shared"]
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("there", "link")] == []


def test_a_task_that_was_replaced_in_the_folder_is_never_lost(run: Path, tmp_path: Path) -> None:
    folder = hub.save_pretrained(run, tmp_path / "shared")
    add_another(folder, "sky")
    changed = (folder / "tasks" / "sky.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"something else.* \(tasks/sky\.safetensors\)"):
        hub.save_pretrained(run, folder)
    hub.save_pretrained(folder, folder)
    assert (folder / "tasks" / "sky.safetensors").read_bytes() == changed
    config = json.loads((folder / "config.json").read_text())
    assert config["checksums"]["sky"] == hashlib.sha256(changed).hexdigest()
    del config["checksums"]  # as versions before wrote it
    (folder / "config.json").write_text(json.dumps(config))
    hub.save_pretrained(run, folder)
    assert (folder / "tasks" / "sky.safetensors").read_bytes() == (run / "bundle" / "tasks" / "sky.safetensors").read_bytes()


def test_an_opened_bundle_that_is_shared_can_be_joined_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.save_pretrained(img2img.load(run).network, tmp_path / "shared")
    assert read_bundle(folder)["select"] == read_bundle(run / "bundle")["select"] == ["*"]
    assert join_bundles(tmp_path / "joined", [run, folder]) == list(TASKS)
    backbone = load_bundle(run / "bundle")[1]
    some = list(load_bundle(run / "bundle")[0].roles.masked)[:2]
    network = MaskedNetwork(backbone, head="head", select=some)
    task = build_task(TASKS["sky"])
    network.add_task("sky", masks.Piggyback(), head=backbone.make_head(task.out_channels))
    network.state("sky").info["task"] = task.options()
    assert read_bundle(hub.save_pretrained(network, tmp_path / "some"))["select"] == some
    monkeypatch.setattr(hub.folder, "MAX_PATTERNS", 1)
    with pytest.raises(InputError, match=r"masks 2 weights .*at most 1, or all"):
        hub.save_pretrained(network, tmp_path / "more")


@pytest.mark.parametrize("name", ["tasks/sky.safetensors", "backbone.safetensors"])
def test_a_damaged_file_is_not_shared(run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(**options: Any) -> None:
        raise AssertionError("nothing may be sent")

    monkeypatch.setattr(huggingface_hub, "HfApi", no_hub)
    broken, shared = shutil.copytree(run, tmp_path / "broken"), hub.save_pretrained(run, tmp_path / "shared")
    before = (shared / "README.md").read_bytes()
    damage(broken / "bundle" / name)
    with pytest.raises(InputError, match=rf"{broken / 'bundle' / name}"):
        hub.save_pretrained(broken, shared)
    assert (shared / "README.md").read_bytes() == before
    for folder in (broken, shared):
        if folder == shared:
            (shared / "config.json").unlink()  # whose checksum would tell
            damage(shared / name)
        with pytest.raises(InputError, match=name):
            hub.push_to_hub(folder, "me/tiny")


def damage(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[-5] ^= 1
    path.write_bytes(blob)


def test_wrong_arguments_are_named(run: Path, tmp_path: Path) -> None:
    for option, value in (("notes", 5), ("results", 5), ("repo_id", 5), ("license", 5), ("notes", "\udc80")):
        with pytest.raises(InputError, match=f"{option}="):
            hub.save_pretrained(run, tmp_path / "shared", **{option: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="source=None: expected a path"):
        hub.save_pretrained(None, tmp_path / "shared")  # type: ignore[arg-type]
    odd = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(InputError, match=r"folder=.*not UTF-8.*repo_id"):
        hub.save_pretrained(run, odd)
    assert list(tmp_path.iterdir()) == []
    hub.save_pretrained(run, odd, repo_id="me/tiny", notes="")
    for name in ("bad name!", "a/b/c", "-x"):
        with pytest.raises(InputError, match=rf"{name}.*is no name of a repository.*expected owner/name"):
            hub.push_to_hub(run, name)


# ---------------------------------------------------------------------- the card


def test_the_card_holds_what_the_files_say(run: Path, tmp_path: Path) -> None:
    folder = hub.save_pretrained(run, tmp_path / "tiny", license="apache-2.0", repo_id="me/tiny")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "img2img"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-to-image"
    assert {"segmentation", "colourisation", "masks"} <= set(card.data.tags)
    found = {(r.task_name, r.task_type, r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("disks", "image-segmentation", "scenes", "mean_iou"): 0.75,
        ("sky", "image-segmentation", "scenes", "mean_iou"): 0.5,
        ("colour", "image-to-image", "image_folder", "ab error"): 123.456,
    }
    size = (folder / "tasks" / "colour.safetensors").stat().st_size
    assert f"| colour | colourisation | piggyback | ab error ↓ | 123.5 | 0.2500 (grey copy) | 7 | {size:,} |" in card.text
    assert f"{(folder / 'backbone.safetensors').stat().st_size:,} bytes" in card.text
    assert 'img2img.from_pretrained("me/tiny")' in card.text
    assert "image_folder (resize 96)" in card.text
    assert "1,500 steps in 5 min 0 s; device an \\[old\\] one, torch 2.11. Steps: disks 500, sky 500, colour 500." in card.text
    assert "someone" not in card.content  # no paths of this machine
    noted = hub.save_pretrained(run, folder, notes="## Terms\n\nMine.\n")
    assert (noted / "README.md").read_text().endswith("keep the terms of their owners.\n\n## Terms\n\nMine.\n")


def test_a_bundle_alone_has_a_card_without_baselines(run: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(run / "bundle", tmp_path / "alone")
    text = (hub.save_pretrained(bundle, tmp_path / "shared") / "README.md").read_text()
    assert "| disks | segmentation | piggyback | mIoU ↑ | 0.7500 | — | — |" in text
    assert "do not say which images" in text
    assert "## Training" not in text
    assert "No licence was stated" in text
    with_results = hub.save_pretrained(bundle, tmp_path / "shared", results=run / "results.json")
    assert "0.2500 (majority class)" in (with_results / "README.md").read_text()
    other = json.loads((run / "results.json").read_text()) | {"backbone": {"sha256": "0" * 64}}
    with pytest.raises(InputError, match="another backbone"):
        hub.save_pretrained(bundle, tmp_path / "shared", results=other)


def test_the_card_says_of_the_run_only_what_holds_for_tasks_that_are_there(run: Path, tmp_path: Path) -> None:
    """`sky` was deleted, and another task took the name of `disks`: neither was trained as the run's files say."""
    folder = shutil.copytree(run, tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    results["tasks"][0]["value"] = 0.9
    (folder / "results.json").write_text(json.dumps(results))
    delete_task_from_bundle(folder / "bundle", "sky")
    text = (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()
    assert "500 steps in 1 min 40 s" in text
    assert "Steps: colour 500." in text
    assert "| disks | segmentation | piggyback | mIoU ↑ | 0.7500 | — | — |" in text
    assert "- colour: image_folder (resize 96)" in text
    assert "scenes" not in text


def test_the_card_shows_no_paths_however_short(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "config" / "config.yaml").write_text(
        "backbone: {weights: mine.pt}\n"
        "tasks:\n"
        "  disks: {data: {kind: a_kind_of_ones_own, root: secret1, my_dir: secret2, images: 500, size: 64}}\n"
        "  sky: {data: {kind: label_folder, images: secret3, labels: secret4, classes: secret5, resize: 96}}\n"
        "  colour: {data: {kind: voc_sbd, sbd: secret6, voc: secret7, split: train}}\n"
    )
    text = (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()
    assert "secret" not in text
    assert "mine.pt" not in text
    assert "a_kind_of_ones_own (images 500, size 64)" in text
    assert "label_folder (resize 96)" in text
    assert "voc_sbd (split train)" in text
    (folder / "config" / "config.yaml").write_text("backbone: {weights: imagenet}\n")
    assert "the weights `imagenet`" in (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()


def test_the_card_has_the_baseline_of_a_task_that_was_added_later(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    network, backbone = load_bundle(run / "bundle")
    task = build_task(TASKS["sky"])
    network.add_task("added", masks.Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
    info = {"figures": {"mIoU": 0.625}, "baseline": 0.125}
    add_task_to_bundle(folder / "bundle", network, "added", options=task.options(), info=info)
    text = (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()
    assert "| added | segmentation | piggyback | mIoU ↑ | 0.6250 | 0.1250 (majority class) | — |" in text
    assert "| sky | segmentation | piggyback | mIoU ↑ | 0.5000 | 0.2500 (majority class) | 7 |" in text


def test_the_card_says_of_forgetting_which_tasks_it_is_about(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    said = "while later ones were learned"
    assert f"{said}: 0." in (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()
    add_another(folder / "bundle", "added")
    text = (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()
    assert f"{said}, of the run that learned disks, sky, colour: 0." in text
    add_another(folder / "bundle", "one")
    for name in TASKS:
        delete_task_from_bundle(folder / "bundle", name)
    assert said not in (hub.save_pretrained(folder, tmp_path / "shared") / "README.md").read_text()


def test_the_cards_numbers_are_those_of_the_report(run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["tasks"][0] |= {"baseline": 12345.6, "test_images": 12345}
    results["environment"] = {}
    for task in results["tasks"]:
        task |= {"steps": 1, "train_seconds": 4}
    text = (hub.save_pretrained(run, tmp_path / "shared", results=results) / "README.md").read_text()
    assert "| 12,346 (majority class) | 12,345 |" in text
    assert "\n3 steps in 12 s. Steps: disks 1, sky 1, colour 1.\n" in text
    del results["tasks"][1]["train_seconds"]
    text = (hub.save_pretrained(run, tmp_path / "shared", results=results) / "README.md").read_text()
    assert "\n2 steps in 8.0 s. Steps: disks 1, colour 1. Not counted, since the results do not say how long " in text
    assert "they were trained: sky.\n" in text


def test_the_cards_example_imports_kinds_of_ones_own(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, backbone = load_bundle(run / "bundle")
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    (tmp_path / "my_kind_of_card.py").write_text(
        "from img2img.tasks import TASKS\nfrom img2img.tasks.denoising import Denoising\n\n\n"
        "@TASKS.register('softening')\nclass Softening(Denoising):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_kind_of_card")
    task = build_task({"kind": "softening"})
    network.add_task("soft", masks.Piggyback(start="uniform"), head=backbone.make_head(task.out_channels))
    add_task_to_bundle(tmp_path / "bundle", network, "soft", options=task.options(), info={})
    text = (hub.save_pretrained(tmp_path / "bundle", tmp_path / "shared") / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "\nimport my_kind_of_card   #" in code
    plain = (hub.save_pretrained(run, tmp_path / "plain") / "README.md").read_text()
    assert "my_kind" not in plain


def test_the_cards_example_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("photo.jpg")
    for name in ("tiny", "a \"quoted\" 'name' 😀"):
        text = (hub.save_pretrained(run, name) / "README.md").read_text()
        exec(compile(text.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
        assert Image.open("result.png").size == (30, 21)
        Path("result.png").unlink()
        assert "# the path of this folder" in text


# ---------------------------------------------------------------------- the Hub


def test_a_repository_is_fetched_by_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = hub.save_pretrained(run, tmp_path / "remote")
    (remote / "pytorch_model.bin").write_bytes(b"a pickle")
    asked: list[dict[str, Any]] = []

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id, **options})
        cache = tmp_path / "cache"
        kept = set(
            huggingface_hub.utils.filter_repo_objects(
                [str(p.relative_to(remote)) for p in remote.rglob("*") if p.is_file()], allow_patterns=options["allow_patterns"]
            )
        )
        for name in kept:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = img2img.from_pretrained("me/tiny", revision="v1", token="t", cache_dir=tmp_path / "c", local_files_only=True)
    assert same_outputs(model, img2img.load(run))
    assert not (tmp_path / "cache" / "pytorch_model.bin").exists()
    (options,) = asked
    assert options.pop("allow_patterns") == list(hub.FILES)
    assert options == {
        "repo_id": "me/tiny", "revision": "v1", "token": "t", "cache_dir": tmp_path / "c", "local_files_only": True
    }  # fmt: skip


def test_a_folder_has_no_revisions(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub.save_pretrained(run, "me/demo")
    with pytest.raises(InputError, match=r"revision='v1': me/demo is a folder on this machine.*leave revision out"):
        hub.from_pretrained("me/demo", revision="v1")
    assert list(hub.from_pretrained("me/demo").tasks) == list(TASKS)


def test_without_a_connection_there_is_one_message_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the installed huggingface_hub's own HTTP client raises, and the error of a lost connection that it does not translate.
    client = importlib.import_module(huggingface_hub.errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    assert issubclass(huggingface_hub.errors.HfHubHTTPError, client.HTTPError)

    with pytest.raises(InputError, match="no folder startr: did you mean 'starter'"):
        hub.from_pretrained("startr", cache_dir=tmp_path)
    with pytest.raises(InputError, match="no bundle in startr: did you mean 'starter'"):
        img2img.load("startr")
    with pytest.raises(InputError, match=r"'me/tiny'.*reached.*give a folder"):
        hub.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True)
    for error in (client.ConnectError("no route"), huggingface_hub.errors.OfflineModeIsEnabled("offline"), TimeoutError("slow")):

        def fail(*args: Any, error: Exception = error, **kwargs: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(InputError, match=rf"could not be reached \({type(error).__name__}") as refused:
            hub.from_pretrained("me/tiny")
        assert "PROXY" not in str(refused.value), "unless one is set, see below"
    for name in ("./nowhere", "/nowhere/at/all", "a/b/c", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no folder"):
            hub.from_pretrained(name)
    with pytest.raises(InputError, match=r"no bundle in .*"):
        hub.from_pretrained(tmp_path)


def test_only_push_to_hub_sends_anything(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, **options: Any) -> None:
            calls.append(("HfApi", options))

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create_repo", {"repo_id": repo_id, **options}))

        def upload_folder(self, **options: Any) -> Any:
            calls.append(("upload_folder", options))
            return type("Commit", (), {"commit_url": "https://hub/me/tiny/commit/1"})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    folder = hub.save_pretrained(run, tmp_path / "shared")
    hub.from_pretrained(folder)
    assert calls == []
    assert hub.push_to_hub(folder, "me/tiny", token="t") == "https://hub/me/tiny/commit/1"
    assert [name for name, _ in calls] == ["HfApi", "create_repo", "upload_folder"]
    assert calls[0][1] == {"token": "t"}
    assert calls[1][1] == {"repo_id": "me/tiny", "private": True, "exist_ok": True}
    assert calls[2][1]["folder_path"] == folder
    assert calls[2][1]["allow_patterns"] == [
        "README.md", "config.json", "bundle.json", "backbone.safetensors",
        *(f"tasks/{name}.safetensors" for name in TASKS),
    ]  # fmt: skip
    assert calls[2][1]["delete_patterns"] == ["tasks/*.safetensors", "bases/*.safetensors"]  # of those that are not sent again
    with pytest.raises(InputError, match=r"license='mit'.*save_pretrained"):
        hub.push_to_hub(folder, "me/tiny", license="mit")
    with pytest.raises(InputError, match="no bundle"):
        hub.push_to_hub(tmp_path, "me/tiny")
    assert len(calls) == 3


def test_only_what_the_bundle_lists_is_sent_with_a_card_of_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> None:
            pass

        def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **options: Any) -> None:
            names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
            sent[:] = sorted(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    folder = hub.save_pretrained(run, tmp_path / "shared")
    for name in ("tasks/secret.safetensors", "tasks/notes.txt"):
        (folder / name).write_bytes(b"mine")
    hub.push_to_hub(folder, "me/tiny")
    tasks = [f"tasks/{name}.safetensors" for name in sorted(TASKS)]
    assert sent == ["README.md", "backbone.safetensors", "bundle.json", "config.json", *tasks]
    for name in ("tasks/secret.safetensors", "tasks/notes.txt"):
        (folder / name).unlink()
    for change in (delete_task_from_bundle, add_another):
        sent.clear()
        change(folder, "sky")
        with pytest.raises(InputError, match=r"card and config\.json .* were written for other tasks.*share save .* --overwrite"):
            hub.push_to_hub(folder, "me/tiny")
        assert sent == []
        hub.save_pretrained(folder, folder)
        hub.push_to_hub(folder, "me/tiny")
        assert ("tasks/sky.safetensors" in sent) is (change is add_another)


def test_a_bundle_without_a_card_gets_one_before_it_is_sent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, bytes] = {}

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> None:
            assert (repo_id, options["private"]) == ("me/tiny", False)

        def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
            sent.update({path.name: path.read_bytes() for path in folder_path.rglob("*") if path.is_file()})
            return type("Commit", (), {"commit_url": "the address"})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    before = sorted(run.rglob("*"))
    assert img2img.push_to_hub(run, "me/tiny", private=False, license="mit") == "the address"
    card = sent["README.md"].decode()
    assert "license: mit" in card
    assert 'from_pretrained("me/tiny")' in card
    assert sent["backbone.safetensors"] == (run / "bundle" / "backbone.safetensors").read_bytes()
    assert sorted(run.rglob("*")) == before


def test_telemetry_is_off_unless_it_was_asked_for(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    for asked in (True, False):
        monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
        if asked:
            monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
        with pytest.raises(InputError):
            hub.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True)
        assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is not asked


def test_a_missing_package_is_named_with_its_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: hub.save_pretrained(run, tmp_path / "a"), lambda: hub.from_pretrained("me/tiny")):
        with pytest.raises(InputError, match=r"pip install 'img2img\[hub\]'"):
            call()
    assert same_outputs(hub.from_pretrained(run), img2img.load(run))  # a folder needs no package


@pytest.mark.slow
def test_a_new_process_behind_a_proxy_is_told_what_is_wrong() -> None:
    """In a process of its own: packages that were imported before hide what is missing."""
    code = (
        "import socket, img2img\n"
        "def refuse(*_, **__): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "try: img2img.from_pretrained('someone/name')\n"
        "except img2img.InputError as error: print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    environment["ALL_PROXY"] = "socks5://127.0.0.1:9"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ALL_PROXY" in done.stdout
    assert "someone/name" in done.stdout
