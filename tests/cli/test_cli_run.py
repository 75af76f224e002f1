"""`img2img run`, `tasks`, `info`: what they print and write, file by file, and how they fail."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import img2img
from img2img import masks
from img2img.cli import app
from img2img.errors import InputError

pytestmark = pytest.mark.usefixtures("without_curves")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("b.jpg", (33, 47)), ("more/a.png", (40, 30))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_a_folder_keeps_its_subfolders_and_gives_what_python_gives(bundle: Path, photos: Path, tmp_path: Path) -> None:
    result = call("run", "colour", photos, "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 0, result.output
    expected = img2img.load(bundle).run("colour", photos)
    for name, image in expected.items():
        made = Image.open((tmp_path / "out" / name).with_suffix(".png"))
        assert made.size == image.size
        assert np.abs(np.asarray(made).astype(int) - np.asarray(image)).max() <= 1
    assert len(result.stdout.split()) == 3


def test_all_tasks_have_a_folder_each_and_json_lists_them(bundle: Path, photos: Path, tmp_path: Path) -> None:
    result = call("run", "all", photos / "a.png", "--out", tmp_path / "out", "--bundle", bundle, "--json")
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert listed["failed"] == 0
    assert [row["task"] for row in listed["results"]] == ["parts", "colour", "edges", "clean"]
    assert all(Path(row["output"]).is_file() and Path(row["output"]).name == "a.png" for row in listed["results"])
    result = call("run", "edges,colour", photos / "a.png", "--out", tmp_path / "two", "--bundle", bundle, "--json")
    assert [row["task"] for row in json.loads(result.stdout)["results"]] == ["edges", "colour"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["colour", "edges"]


def test_labels_are_written_as_indices(bundle: Path, photos: Path, tmp_path: Path) -> None:
    assert call("run", "parts", photos / "a.png", "-o", tmp_path, "-b", bundle, "--form", "labels").exit_code == 0
    expected = img2img.load(bundle).run("parts", np.asarray(Image.open(photos / "a.png")), form="labels")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), expected)


def test_scores_are_written_as_json(make_bundle: Any, photos: Path, tmp_path: Path) -> None:
    animals = make_bundle(
        {"kind": "torchvision", "name": "resnet18"}, {"animals": {"kind": "classification", "classes": ["cat", "dog"]}}
    )
    assert call("run", "animals", photos / "a.png", "-o", tmp_path, "-b", animals, "--form", "scores").exit_code == 0
    scores = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert set(scores) == {"cat", "dog"}
    assert sum(scores.values()) == pytest.approx(1)
    arguments = ("run", "animals", photos / "a.png", "-b", animals, "--form", "scores", "-o")
    assert call(*arguments, tmp_path / "own.json").exit_code == 0
    assert json.loads((tmp_path / "own.json").read_text(encoding="utf-8")) == scores
    assert "written as .json" in str(call(*arguments, tmp_path / "own.png").exception)


def test_a_form_that_every_task_has_goes_with_all(make_bundle: Any, bundle: Path, photos: Path, tmp_path: Path) -> None:
    task = {"kind": "classification", "classes": ["cat", "dog"]}
    animals = make_bundle({"kind": "torchvision", "name": "resnet18"}, {"animals": task, "more": task})
    assert call("run", "all", photos / "a.png", "-o", tmp_path / "out", "-b", animals, "--form", "scores").exit_code == 0
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json")} == {
        "animals/a.json",
        "more/a.json",
    }
    result = call("run", "all", photos / "a.png", "-o", tmp_path / "out", "-b", bundle, "--form", "labels")
    assert isinstance(result.exception, InputError)
    assert "form='labels'" in str(result.exception)


def test_a_broken_file_is_named_and_the_others_are_done(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:100])
    result = call("run", "colour", photos, "--out", tmp_path / "out", "--bundle", bundle, "--json")
    assert result.exit_code == 1
    assert "broken.png" in result.stderr
    assert json.loads(result.stdout)["failed"] == 1
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_what_is_left_out_of_a_folder_is_said_and_results_are_no_images(
    bundle: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "c.jfif").write_bytes((photos / "b.jpg").read_bytes())
    (photos / "d.heic").touch()
    out = photos / "made"
    for _ in range(2):
        result = call("run", "all", photos, "--out", out, "--bundle", bundle, "--overwrite")
        assert result.exit_code == 0, result.output
    assert len(list(out.rglob("*.png"))) == 4 * 4, "four tasks, four images"
    assert "left out 1 other file (.heic: 1)" in caplog.records[0].getMessage()  # which goes to stderr


def test_white_is_said_on_the_command_line(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (30, 40), dtype=np.uint16)
    (tmp_path / "deep").mkdir()
    for name in "ab":
        Image.fromarray(values).save(tmp_path / "deep" / f"{name}.png")
    for out, options in (("dark", ()), ("bright", ("--white", 4095))):
        result = call("run", "edges", tmp_path / "deep", "--out", tmp_path / out, "--bundle", bundle, *options)
        assert result.exit_code == 0, result.output
    assert [record.getMessage().count("give white=4095") for record in caplog.records] == [1]
    model = img2img.load(bundle)
    for folder, white in (("dark", 65535), ("bright", 4095)):
        eight = np.repeat(np.round(values * (255 / white)).astype(np.uint8)[..., None], 3, 2)
        assert np.array_equal(np.asarray(Image.open(tmp_path / folder / "a.png")), np.asarray(model.run("edges", eight))), folder
    wrong = call("run", "edges", tmp_path / "deep", "--out", tmp_path / "no", "--bundle", bundle, "--white", 70000)
    assert isinstance(wrong.exception, InputError) or "white" in wrong.output


def _video(path: Path, frames: int = 5) -> list[np.ndarray[Any, Any]]:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (48, 32))
    for i in range(frames):
        writer.write(np.full((32, 48, 3), (20 * i, 100, 200), np.uint8))
    writer.release()
    capture, read = cv2.VideoCapture(str(path)), []
    while (step := capture.read())[0]:
        read.append(step[1][..., ::-1])
    return read


def test_a_video_becomes_a_video_or_its_frames(bundle: Path, tmp_path: Path) -> None:
    read = _video(tmp_path / "clip.avi")
    assert len(read) == 5
    assert call("run", "colour", tmp_path / "clip.avi", "--out", tmp_path / "out", "--bundle", bundle).exit_code == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (5, 10)
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (48, 32)
    assert call("run", "colour", tmp_path / "clip.avi", "--out", tmp_path / "out", "--bundle", bundle, "--frames").exit_code == 0
    frames = sorted((tmp_path / "out" / "clip").iterdir())
    expected = img2img.load(bundle).run("colour", [np.ascontiguousarray(frame) for frame in read])
    assert len(frames) == 5
    for file, frame in zip(frames, expected, strict=True):
        assert np.abs(np.asarray(Image.open(file)).astype(int) - frame).max() <= 1
    users = [frames[0].with_name(name) for name in ("000009.png", "6.png", "000004.json", "notes.txt")]
    for path in users:
        path.touch()
    _video(tmp_path / "clip.avi", 3)
    shorter = ("run", "colour", tmp_path / "clip.avi", "--out", tmp_path / "out", "--bundle", bundle, "--frames", "--overwrite")
    assert call(*shorter).exit_code == 0
    assert sorted((tmp_path / "out" / "clip").iterdir()) == sorted([*frames[:3], *users])
    (tmp_path / "no.mp4").write_bytes(b"no video")
    result = call("run", "colour", tmp_path / "no.mp4", "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 1
    assert "no.mp4 is not a video that can be read" in result.stderr
    result = call("run", "colour", tmp_path / "gone.mp4", "--out", tmp_path / "out", "--bundle", bundle)
    assert "gone.mp4: expected a video; check the path" in result.stderr


def test_what_is_there_is_not_overwritten_unasked(bundle: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ("run", "colour", photos / "a.png", "--out", tmp_path, "--bundle", bundle)
    assert call(*arguments).exit_code == 0
    again = call(*arguments)
    assert isinstance(again.exception, InputError)
    assert "--overwrite" in str(again.exception)
    assert call(*arguments, "--overwrite").exit_code == 0


def test_out_may_be_the_one_result_itself(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.png"
    arguments = ("run", "colour", photos / "a.png", "--out", out, "--bundle", bundle)
    assert call(*arguments).stdout.strip() == str(out)
    assert Image.open(out).size == (40, 30)
    assert "--overwrite" in str(call(*arguments).exception)
    assert call(*arguments, "--overwrite").exit_code == 0
    here = ("--out", photos / "a.png", "--overwrite", "--bundle", bundle)
    assert "one of the inputs" in str(call("run", "colour", photos / "a.png", *here).exception)
    _video(tmp_path / "clip.avi", 3)
    for sources, other, said in (
        (("colour", photos / "a.png"), "x.jpg", "this result is written as .png"),
        (("colour", tmp_path / "clip.avi"), "x.png", "this result is written as .mp4"),
        (("colour", tmp_path / "clip.avi", "--frames"), "x.png", "without --frames"),
        (("colour", photos), "x.png", "x.png names a file"),
        (("colour", photos / "a.png", photos / "b.jpg"), "x.PNG", "names a file"),
        (("colour,edges", photos / "a.png"), "x.png", "names a file"),
        (("all", photos / "a.png"), "x.png", "names a file"),
        (("colour", photos / "a.png", "--launcher", "ray"), "x.png", "expected a folder"),
    ):
        refused = call("run", *sources, "--out", tmp_path / other, "--bundle", bundle).exception
        assert isinstance(refused, InputError)
        assert said in str(refused)
        assert not (tmp_path / other).exists()
    assert call("run", "colour", tmp_path / "clip.avi", "--out", tmp_path / "made.mp4", "--bundle", bundle).exit_code == 0
    (tmp_path / "v.png").mkdir()
    assert call("run", "colour", photos / "a.png", "--out", tmp_path / "v.png", "--bundle", bundle).exit_code == 0
    assert (tmp_path / "v.png" / "a.png").is_file()


def test_an_input_that_no_task_can_read_is_named_once(bundle: Path, photos: Path, tmp_path: Path) -> None:
    result = call("run", "all", photos / "a.png", photos / "gone.png", "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 1
    assert result.stderr.count("gone.png") == 1
    assert "1 of 2 inputs failed; 4 of 8 results are done" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "style", "a.png", "--out", "out"), "no task 'style'"),
        (("run", "colour", "a.png", "--out", "out", "--form", "labels"), "a colourisation task gives image"),
        (("run", "all", "a.png", "--out", "out", "--form", "labels"), "of several tasks, but colour"),
        (("run", "colour", "a.png", "--out", "out", "--launcher", "ray", "--frames"), "--launcher ray with --frames"),
        (("run", "colour", "a.png", "more/a.png", "--out", "out"), "would both become"),
        (("tasks", "show", ".", "x"), "no bundle in"),
    ],
)
def test_mistakes_are_named(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.setenv("IMG2IMG_BUNDLE", str(bundle))
    result = call(*arguments)
    assert said in f"{result.exception} {result.stderr}"
    assert result.exit_code == 1


def test_tasks_without_a_binary_mask_are_listed_and_compared_with_a_dash(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(tasks={"colour": {"kind": "colourisation"}}, method=masks.LoRA(rank=1))
    assert json.loads(call("tasks", "list", folder, "--json").stdout)[0]["density"] is None
    (row,) = [line.split() for line in call("tasks", "list", folder).stdout.splitlines() if "lora" in line]
    assert row[:2] == ["colour", "colourisation"]
    assert row[row.index("lora") + 1] == "—"
    assert "—" in call("tasks", "similarity", folder).stdout
    assert re.search(r"density +—", call("tasks", "show", folder, "colour").stdout)


def test_tasks_are_listed_shown_compared_and_deleted(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    listed = json.loads(call("tasks", "list", folder, "--json").stdout)
    assert [row["name"] for row in listed] == ["parts", "colour", "edges", "clean"]
    assert (listed[0]["higher_is_better"], listed[1]["higher_is_better"], listed[0]["baseline"]) == (True, False, None)
    assert "mIoU ↑ 0.5000" in " ".join(call("tasks", "list", folder).stdout.split())
    shown = json.loads(call("tasks", "show", folder, "parts", "--json").stdout)
    assert (shown["kind"], shown["metrics"]) == ("segmentation", {"mIoU": 0.5})
    assert shown["legend"].keys() == {"ground", "tree", "house"}
    colours = np.asarray(img2img.load(folder).run("parts", Image.new("RGB", (32, 32))))
    assert {"#" + bytes(colour.tolist()).hex() for colour in colours.reshape(-1, 3)} <= set(shown["legend"].values())
    text = call("tasks", "show", folder, "parts").stdout
    assert "primary_metric  mIoU ↑\n" in text
    assert f"colour of tree  {shown['legend']['tree']}\n" in text
    assert re.search(r"density  0\.\d{4}\n", text)
    assert "colour of" not in call("tasks", "show", folder, "colour").stdout
    similar = json.loads(call("tasks", "similarity", folder, "--json", "--out", tmp_path / "s.png").stdout)
    assert similar["tasks"] == ["parts", "colour", "edges", "clean"]
    assert np.allclose(np.diag(similar["matrix"]), 1)
    assert Image.open(tmp_path / "s.png").format == "PNG"
    task = folder / "tasks" / "colour.safetensors"
    for out, options, said in (
        (tmp_path / "s.png", (), "there already: .*--overwrite"),
        (shutil.copy(tmp_path / "s.png", tmp_path / "s.jpg"), ("--overwrite",), "drawn as PNG"),
        (task, (), "within the bundle"),
        (task, ("--overwrite",), "within the bundle"),
    ):
        content = out.read_bytes()
        refused = call("tasks", "similarity", folder, "--out", out, *options).exception
        assert isinstance(refused, InputError)
        assert re.search(said, str(refused))
        assert out.read_bytes() == content
    assert call("tasks", "similarity", folder, "--out", tmp_path / "s.png", "--overwrite").exit_code == 0
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = img2img.load(folder).run("edges", image)
    asked = CliRunner().invoke(app, ["tasks", "delete", str(folder), "colour"], input="n\n")
    assert asked.exit_code == 1
    assert (folder / "tasks" / "colour.safetensors").is_file()
    assert call("tasks", "delete", folder, "colour", "--yes").exit_code == 0
    assert not (folder / "tasks" / "colour.safetensors").exists()
    assert list(img2img.load(folder).tasks) == ["parts", "edges", "clean"]
    assert np.array_equal(img2img.load(folder).run("edges", image), before)
    for options in ((), ("--yes",)):
        refused = call("tasks", "delete", folder, "colour", *options)
        assert "no task 'colour'" in str(refused.exception)
        assert "delete the task" not in refused.output
    refused = call("tasks", "delete", "starter", "gogh")
    assert "came with img2img and is not changed" in str(refused.exception)
    assert "delete the task" not in refused.output


def test_info_of_a_bundle_and_of_the_installation(bundle: Path) -> None:
    facts = json.loads(call("info", bundle, "--json").stdout)
    assert facts["tasks"] == ["parts", "colour", "edges", "clean"]
    assert facts["backbone bytes"] == (bundle / "backbone.safetensors").stat().st_size
    installed = json.loads(call("info", "--json").stdout)
    assert installed["img2img"] == img2img.__version__
    assert installed["torch"]
    assert facts["metrics"]["parts"] == {
        "metric": "mIoU", "higher_is_better": True, "value": 0.5, "baseline": None, "baseline_name": "majority class"
    }  # fmt: skip
    text = call("info", bundle).stdout
    assert f"{'tasks':>28}  parts, colour, edges, clean" in text
    assert f"{'test of parts':>28}  mIoU ↑ 0.5000\n" in text


def test_the_baseline_that_a_tasks_file_has_is_told(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    assert json.loads(call("tasks", "show", copy, "parts", "--json").stdout)["baseline"] is None
    network = img2img.load(bundle).network
    network.save_task("parts", copy / "tasks" / "parts.safetensors", info={"baseline": 0.25})
    assert json.loads(call("tasks", "show", copy, "parts", "--json").stdout)["baseline"] == 0.25
    assert "mIoU of the majority class  0.2500\n" in call("tasks", "show", copy, "parts").stdout
    for command in (("tasks", "list"), ("info",)):
        text = " ".join(call(*command, copy).stdout.split())
        assert "0.2500)" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img.cli import main

    monkeypatch.setenv("_IMG2IMG_COMPLETE", f"source_{shell}")
    monkeypatch.setattr("sys.argv", ["img2img"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0


@pytest.mark.parametrize("command", [(), ("run",), ("tasks",), ("tasks", "list"), ("train",), ("demo",), ("report",), ("info",)])
def test_every_help_teaches(command: tuple[str, ...]) -> None:
    text = call(*command, "--help").stdout
    assert "Usage: img2img" in text or "Usage: root" in text
    assert len(text.split()) > 20


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    "command",
    [
        ("run", "all", "a.png", "--out", "out", "--bundle", "{}"),
        ("run", "colour", "a.png", "--out", "out", "--bundle", "{}"),
        ("tasks", "list", "{}"),
        ("tasks", "similarity", "{}"),
        ("export", "all", "--out", "out", "--bundle", "{}"),
        ("serve", "{}"),
        ("share", "save", "{}", "shared"),
        ("join", "joined", "{}"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_bundle_without_tasks_says_why(
    make_bundle: Any, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = make_bundle(tasks={})
    result = call(*(part.format(bare) for part in command))
    assert result.exit_code == 1
    assert isinstance(result.exception, InputError)
    assert f"the bundle in {bare} has no tasks" in str(result.exception)
    assert "comparison methods" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_task_with_the_name_of_all_is_asked_about(make_bundle: Any, photos: Path, tmp_path: Path) -> None:
    odd = make_bundle(tasks={"all": {"kind": "colourisation"}, "more": {"kind": "colourisation"}})
    for command in (["run", "all", photos], ["export", "all"]):
        result = call(*command, "--out", tmp_path / "out", "--bundle", odd)
        assert isinstance(result.exception, InputError)
        assert "has a task 'all'" in str(result.exception)
    assert not (tmp_path / "out").exists()
