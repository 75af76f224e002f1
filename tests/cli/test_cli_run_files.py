"""`img2img run` on what goes wrong with files: inputs that would be overwritten, names, permissions, broken and odd videos."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import img2img
from img2img.cli import app
from img2img.cli.run_files import Job, check_targets
from img2img.cli.video import set_rate
from img2img.errors import InputError


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return path


# ---------------------------------------------------------------------- a target that is a source


def _same_folder(folder: Path) -> tuple[list[Path], Path]:
    return [folder / "b.png"], folder


def _by_a_dot(folder: Path) -> tuple[list[Path], Path]:
    return [folder / ".." / folder.name / "b.png"], folder / "."


def _by_a_link(folder: Path) -> tuple[list[Path], Path]:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "b.png").symlink_to(folder / "b.png")
    return [folder / "b.png"], folder.parent / "out"


def _from_a_link(folder: Path) -> tuple[list[Path], Path]:
    (folder.parent / "elsewhere").symlink_to(folder)
    return [folder.parent / "elsewhere" / "b.png"], folder


def _by_a_hard_link(folder: Path) -> tuple[list[Path], Path]:
    (folder.parent / "out").mkdir()
    os.link(folder / "b.png", folder.parent / "out" / "b.png")
    return [folder / "b.png"], folder.parent / "out"


def _of_another_source(folder: Path) -> tuple[list[Path], Path]:
    _image(folder.parent / "b.jpg")
    return [folder / "a.png", folder.parent / "b.jpg"], folder  # b.jpg would become b.png, which the folder holds


def _whole_folder(folder: Path) -> tuple[list[Path], Path]:
    return [folder], folder


@pytest.mark.parametrize(
    "case",
    [_same_folder, _by_a_dot, _by_a_link, _from_a_link, _by_a_hard_link, _whole_folder],
    ids=lambda case: case.__name__[1:],
)
def test_an_input_is_never_overwritten(bundle: Path, tmp_path: Path, case: Callable[[Path], tuple[list[Path], Path]]) -> None:
    photo = _image(tmp_path / "photos" / "b.png")
    before = photo.read_bytes()
    sources, out = case(photo.parent)
    result = call("run", "colour", *sources, "--out", out, "--overwrite", "--bundle", bundle)
    assert isinstance(result.exception, InputError), result.output
    assert "one of the inputs" in str(result.exception)
    assert "--out" in str(result.exception)
    assert photo.read_bytes() == before


def test_nor_is_another_of_the_inputs(tmp_path: Path) -> None:
    a, b = _image(tmp_path / "a.png"), _image(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"a\.png, which is one of the inputs"):
        check_targets([Job("colour", b, a), Job("colour", a, tmp_path / "c.png")], overwrite=True)


def test_nor_by_a_name_that_differs_in_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = _image(tmp_path / "Photo.png")
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **k: stat(tmp_path / "Photo.png" if Path(path).name == "photo.png" else path, **k)
    )
    with pytest.raises(InputError, match="one of the inputs"):
        check_targets([Job("colour", photo, tmp_path / "photo.png")], overwrite=True)


def test_nor_are_images_in_the_folder_of_a_videos_frames(bundle: Path, tmp_path: Path) -> None:
    _video(tmp_path / "clip.avi", (32, 32))
    frame = _image(tmp_path / "out" / "clip" / "000001.png")
    before = frame.read_bytes()
    result = call(
        "run", "colour", tmp_path / "clip.avi", frame, "--frames", "--out", tmp_path / "out", "--overwrite", "-b", bundle
    )
    assert isinstance(result.exception, InputError)
    assert frame.read_bytes() == before


def test_results_in_a_folder_below_the_input_are_no_inputs(bundle: Path, tmp_path: Path) -> None:
    _image(tmp_path / "photos" / "a.png")
    arguments = ("run", "all", tmp_path / "photos", "--out", tmp_path / "photos" / "made", "--bundle", bundle, "--overwrite")
    assert call(*arguments).exit_code == 0
    made = sorted((tmp_path / "photos" / "made").rglob("*.png"))
    assert len(made) == 4
    assert call(*arguments).exit_code == 0
    assert sorted((tmp_path / "photos" / "made").rglob("*.png")) == made


# ---------------------------------------------------------------------- one file that fails


def test_what_cannot_be_read_or_written_ends_no_batch(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    for i, name in enumerate(("a", "forbidden", "m" * 245, "vanished", "z")):
        _image(photos / f"{name}.png", seed=i)
    (photos / "n.png").mkdir()  # a folder by the name of an image
    _image(photos / "n.png" / "inner.png")
    from img2img.inference import conversion

    open_image = conversion.open_image

    def fails(path: Any) -> Any:
        if "vanished" in str(path):
            os.unlink(path)
        if "forbidden" in str(path):  # not by chmod, which root ignores
            raise PermissionError(13, "Permission denied", str(path))
        return open_image(path)

    monkeypatch.setattr(conversion, "open_image", fails)
    (tmp_path / "out").mkdir()
    result = call("run", "colour", photos, "--out", tmp_path / "out", "--bundle", bundle, "--json")
    assert result.exit_code == 1
    assert not isinstance(result.exception, OSError | InputError)
    assert "forbidden.png" in result.stderr
    assert "permissions" in result.stderr
    assert "vanished.png" in result.stderr
    assert "2 of 6 inputs failed; 4 of 6 results are done" in result.stderr
    listed = json.loads(result.stdout)
    assert listed["failed"] == 2
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png") if path.is_file()}
    assert made == {"a.png", "z.png", "n.png/inner.png", "m" * 245 + ".png"}


def test_a_name_that_is_too_long_for_a_result_fails_alone(
    make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    animals = make_bundle(
        {"kind": "torchvision", "name": "resnet18"}, {"animals": {"kind": "classification", "classes": ["cat", "dog"]}}
    )
    monkeypatch.chdir(tmp_path)
    long = "m" * 251 + ".png"  # 255 bytes; with .json it would be 256
    for name in (long, "z.png"):
        _image(Path(name))
    for options in ((), ("--overwrite",)):
        result = call(
            "run", "animals", long, "z.png", "--form", "scores", "--out", f"out{len(options)}", "--bundle", animals, *options
        )
        assert result.exit_code == 1
        assert not isinstance(result.exception, OSError | InputError)
        assert "too long" in result.stderr
        assert (tmp_path / f"out{len(options)}" / "z.json").is_file()
    assert call("run", "animals", "q" * 300 + ".png", "z.png", "--out", "more", "--bundle", animals).exit_code == 1
    assert (tmp_path / "more" / "z.png").is_file()


def test_a_full_disk_ends_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        _image(tmp_path / "photos" / name)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("img2img.files.results.write_atomic", full)
    result = call("run", "colour", tmp_path / "photos", "--out", tmp_path / "out", "--bundle", bundle)
    assert isinstance(result.exception, OSError), "every further image would be computed for nothing"


def test_memory_that_runs_out_for_one_image_ends_no_batch(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        _image(tmp_path / "photos" / name)
    from img2img.inference import model

    results, calls = model.results, []

    def once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried to allocate 9"
            )
        return results(*arguments)

    monkeypatch.setattr(model, "results", once)
    result = call("run", "colour", tmp_path / "photos", "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 1
    assert "out of memory" in result.stderr
    assert (tmp_path / "out" / "b.png").is_file()


# ---------------------------------------------------------------------- videos


def _video(path: Path, size: tuple[int, int], frames: int = 5, fps: float = 12.5) -> list[np.ndarray[Any, Any]]:
    """A video of Motion JPEG, which keeps odd sizes; its frames, (H, W, 3) RGB."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    for i in range(frames):
        frame = np.full((size[1], size[0], 3), (20 * i, 100, 200), np.uint8)
        frame[-8:, -8:] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    set_rate(path, fps)  # which OpenCV rounds
    return _frames(path)


def _frames(path: Path) -> list[np.ndarray[Any, Any]]:
    capture, read = cv2.VideoCapture(str(path)), []
    while (step := capture.read())[0]:
        read.append(step[1][..., ::-1])
    return read


@pytest.mark.parametrize(("size", "ending"), [((101, 75), ".avi"), ((100, 75), ".avi"), ((101, 74), ".avi"), ((100, 74), ".mp4")])
def test_a_video_keeps_its_size_speed_and_frames(bundle: Path, tmp_path: Path, size: tuple[int, int], ending: str) -> None:
    read = _video(tmp_path / "clip.avi", size)
    assert cv2.VideoCapture(str(tmp_path / "clip.avi")).get(cv2.CAP_PROP_FPS) == 12.5
    assert read[0].shape == (size[1], size[0], 3)
    result = call("run", "clean", tmp_path / "clip.avi", "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 0, result.output
    made = tmp_path / "out" / f"clip{ending}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [made.name]
    frames = _frames(made)
    assert len(frames) == 5
    assert frames[0].shape == read[0].shape
    assert cv2.VideoCapture(str(made)).get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    expected = img2img.load(bundle).run("clean", [np.ascontiguousarray(frame) for frame in read])
    for frame, wanted in zip(frames, expected, strict=True):
        assert np.abs(frame.astype(int) - wanted).mean() < 12, "the last column and row too"
        assert np.abs(frame[-1, -1].astype(int) - wanted[-1, -1]).max() < 90


def test_a_video_that_is_cut_off_is_named_and_the_others_are_done(bundle: Path, tmp_path: Path) -> None:
    _video(tmp_path / "a.avi", (48, 32), frames=40)
    whole = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: len(whole) // 2])
    _video(tmp_path / "b.avi", (48, 32))
    for options, found in (((), ["a.mp4", "b.mp4"]), (("--frames",), ["a", "b"])):
        out = tmp_path / f"out{len(options)}"
        result = call("run", "colour", tmp_path / "a.avi", tmp_path / "b.avi", "--out", out, "--bundle", bundle, *options)
        assert result.exit_code == 1
        assert "a.avi says that it has 40 frames, but" in result.stderr
        assert sorted(path.name for path in out.iterdir()) == found


def test_an_error_within_a_video_ends_no_batch(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _video(tmp_path / "a.avi", (48, 32))
    _video(tmp_path / "b.avi", (40, 32))
    from img2img.inference import model

    results = model.results

    def fails(opened: Any, *arguments: Any) -> Any:
        if opened[0].size == (32, 48):
            raise MemoryError
        return results(opened, *arguments)

    monkeypatch.setattr(model, "results", fails)
    result = call("run", "colour", tmp_path / "a.avi", tmp_path / "b.avi", "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 1
    assert "out of memory" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.mp4"]


def test_labels_and_scores_are_no_video(bundle: Path, tmp_path: Path) -> None:
    _video(tmp_path / "a.avi", (48, 32))
    _image(tmp_path / "b.png")
    result = call(
        "run", "parts", tmp_path / "b.png", tmp_path / "a.avi", "--form", "labels", "--out", tmp_path / "out", "-b", bundle
    )
    assert isinstance(result.exception, InputError)
    assert "--frames" in str(result.exception)
    assert not (tmp_path / "out").exists(), "said before anything runs"


def test_without_opencv_a_video_is_one_message(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _video(tmp_path / "a.avi", (48, 32))
    _image(tmp_path / "b.png")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    result = call("run", "colour", tmp_path / "b.png", tmp_path / "a.avi", "--out", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 1
    assert "a video needs the package 'cv2'" in result.stderr
    assert "img2img[images]" in result.stderr
    assert (tmp_path / "out" / "b.png").is_file()
