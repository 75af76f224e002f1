"""Many images in pieces, with and without Ray; and the web service as replicas of Ray Serve."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from web_bundles import encoded, image_bundle, make_bundle, photo, same, task_file
from web_service import API, opened

import img2img
from img2img import InputError, registry
from img2img.cli import app
from img2img.inference import Batching
from img2img.launch import ray_images
from img2img.launch.image_sources import Done, images_of, pieces_of
from img2img.launch.ray_images import MANIFEST, ImageRun, run_on_ray
from img2img.launch.ray_launcher import processes_for
from img2img.launch.ray_service import images_at_once
from img2img.web import Limits

TASKS = ("colour", "edges")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def make_sources(folder: Path, count: int) -> list[str]:
    """A folder with a broken file, a shard with a text, and a list of files elsewhere; of `count` sound images each."""
    (folder / "photos" / "deep").mkdir(parents=True)
    (folder / "other").mkdir()
    for number in range(count):
        photo(40 + number % 3, 33, seed=number).save(folder / "photos" / "deep" / f"p{number}.png")
        photo(36, 36, seed=100 + number).save(folder / "other" / f"o{number}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"no image")
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for name, content in [
            *((f"s{n}.png", encoded(photo(30, 44, seed=200 + n))) for n in range(count)),
            ("s0.txt", b"a text"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    (folder / "list.txt").write_text("".join(f"other/o{number}.png\n" for number in range(count)) + "other/o0.png\n")
    return [str(folder / name) for name in ("photos", "shard.tar", "list.txt")]


def manifest_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]


def check_results(out: Path, bundle: Path, folder: Path, count: int) -> None:
    """Each image has one result of each task, which is that of `Model.run`, or one error."""
    rows, model = manifest_of(out), img2img.load(bundle)
    names = [f"deep/p{n}.png" for n in range(count)] + [f"shard/s{n}.png" for n in range(count)]
    names += [f"other/o{n}.png" for n in range(count)] + ["broken.jpg"]
    assert sorted((row["input"], row["task"]) for row in rows) == sorted((name, task) for name in names for task in TASKS)
    for row in rows:
        if row["input"] == "broken.jpg":
            assert row["output"] is None
            assert "broken.jpg" in row["error"]
            continue
        stem, number = Path(row["input"]).stem, int(Path(row["input"]).stem[1:])
        image = {"p": photo(40 + number % 3, 33, seed=number), "s": photo(30, 44, seed=200 + number)}.get(
            stem[0], photo(36, 36, seed=100 + number)
        )
        assert row["error"] is None
        with Image.open(out / row["output"]) as result:
            assert np.array_equal(np.asarray(result), np.asarray(model.run(row["task"], image))), row
    assert len({row["bundle"] for row in rows}) == len(TASKS)
    assert len(list(out.rglob("*.png"))) == len(TASKS) * 3 * count


class Killed(BaseException):
    """The process ends here."""


def in_this_process(monkeypatch: pytest.MonkeyPatch, *, stop: int | None = None) -> None:
    """Images are run here, without Ray; the process is killed after `stop` pieces, when their results are made."""

    def results(run: ImageRun, pieces: Sequence[Any], done: Any, *_: Any) -> Iterator[list[dict[str, Any]]]:
        worker = ray_images._Worker(run)
        for number, piece in enumerate(pieces):
            rows = worker.results(list(images_of(piece, done)))
            if number == stop:
                raise Killed
            yield rows

    monkeypatch.setattr(ray_images, "_results", results)


def test_a_run_that_is_killed_goes_on_and_each_image_has_one_result(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, out = tuple(make_sources(tmp_path, 3)), tmp_path / "out"
    run = ImageRun(bundle=str(bundle), tasks=TASKS, sources=sources, out=str(out))
    in_this_process(monkeypatch, stop=2)
    with pytest.raises(Killed):
        run_on_ray(run)
    assert len(manifest_of(out)) == 2 * (4 + 3)
    with (out / MANIFEST).open("r+b") as file:  # in the middle of a line, so that the image's first row is alone
        file.truncate(file.seek(0, os.SEEK_END) - 9)
    in_this_process(monkeypatch)
    done = run_on_ray(run)
    failed = len(TASKS)  # the broken image's results, which are tried again each time
    assert (done.before, done.images, done.failed) == (5, 5, failed), "what is not noted whole is done again"
    check_results(out, bundle, tmp_path, 3)
    done = run_on_ray(run)
    assert (done.before, done.images, done.failed) == (9, 1, failed)
    check_results(out, bundle, tmp_path, 3)
    Image.new("RGB", (40, 33)).save(tmp_path / "photos" / "broken.jpg")
    done = run_on_ray(run)
    assert (done.before, done.images, done.failed) == (9, 1, 0), "it was mended meanwhile"
    assert run_on_ray(run).images == 0
    assert run_on_ray(run, overwrite=True).images == 10
    assert len(manifest_of(out)) == 10 * len(TASKS)


def test_an_image_of_the_same_name_from_elsewhere_is_not_taken_for_done(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        photo(24, 20, seed=ord(name)).save(tmp_path / name / "same.png")
        with tarfile.open(tmp_path / name / "shard.tar", "w") as shard:
            shard.add(tmp_path / name / "same.png", "in.png")
    for source in ("", "shard.tar"):
        run = {"bundle": str(bundle), "tasks": ("edges",), "out": str(tmp_path / f"out{source}")}
        first, second = (ImageRun(**run, sources=(str(tmp_path / name / source),)) for name in "ab")
        assert run_on_ray(first).images == 1
        with pytest.raises(InputError, match=r"already, which did not come from .*/b/.*--overwrite"):
            run_on_ray(second)
        assert run_on_ray(first).images == 0


def test_sources_may_overlap(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        photo().save(tmp_path / "photos" / f"{name}.png")
    for name in ("train.0", "train.1"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as shard:
            shard.add(tmp_path / "photos" / "a.png", "a.png")
    monkeypatch.chdir(tmp_path)
    sources = ("photos", "photos/a.png", str(tmp_path / "photos"), "train.0.tar", "train.1.tar", "./train.0.tar")
    run_on_ray(ImageRun(bundle=str(bundle), tasks=("edges",), sources=sources, out="out"))
    assert sorted(row["input"] for row in manifest_of(Path("out"))) == ["a.png", "b.png", "train.0/a.png", "train.1/a.png"]


def test_workers_import_what_the_command_has_imported(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_imported", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("my_kinds_for_ray.py").write_text("")
    registry.import_modules(["my_kinds_for_ray.py", "json"])
    photo(20, 20).save("p.png")
    began: list[ImageRun] = []
    monkeypatch.setattr(ray_images, "_results", lambda run, *_: began.append(run) or iter(()))
    run_on_ray(ImageRun(bundle=str(bundle), tasks=TASKS, sources=("p.png",), out="out"))
    assert began[0].imports == (str(tmp_path / "my_kinds_for_ray.py"), "json")
    monkeypatch.delitem(sys.modules, "my_kinds_for_ray")
    monkeypatch.chdir("out")  # a worker is started elsewhere
    ray_images._Worker(began[0])
    assert "my_kinds_for_ray" in sys.modules


def test_results_of_another_run_are_not_mixed_with_these(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    photo().save(tmp_path / "a.png")
    run = {"bundle": str(bundle), "sources": (str(tmp_path / "a.png"),), "out": str(tmp_path / "out")}
    assert run_on_ray(ImageRun(tasks=("edges",), **run)).images == 1
    with pytest.raises(InputError, match=r"tasks, bundle differ.*--overwrite"):
        run_on_ray(ImageRun(tasks=("colour",), **run))
    with pytest.raises(InputError, match=r"options differ"):
        run_on_ray(ImageRun(tasks=("edges",), side=32, **run))
    assert run_on_ray(ImageRun(tasks=("colour",), **run), overwrite=True).images == 1
    assert [row["task"] for row in manifest_of(tmp_path / "out")] == ["colour"]


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        photo().save(tmp_path / name / "same.png")
    with pytest.raises(InputError, match=r"would both become same\.png"):
        list(pieces_of([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out"))
    (tmp_path / "photos" / "s1").mkdir(parents=True)
    photo().save(tmp_path / "photos" / "s1" / "a.png")
    with tarfile.open(tmp_path / "s1.tar", "w") as shard:
        shard.add(tmp_path / "photos" / "s1" / "a.png", "a.png")
    for sources in (("photos", "s1.tar"), ("s1.tar", "photos")):
        with pytest.raises(InputError, match=r"s1.* and .*s1.* would both write into s1/: give them in two calls"):
            list(pieces_of([str(tmp_path / source) for source in sources], tmp_path / "out"))
    with pytest.raises(InputError, match="a path a line"):
        list(pieces_of([str(tmp_path / "list.txt")], tmp_path / "out"))
    (tmp_path / "x.tar").write_bytes(b"no archive")
    (piece,) = pieces_of([str(tmp_path / "x.tar")], tmp_path / "out")
    (row,) = images_of(piece, Done())
    assert "copy it again" in row["error"], "a row, and no end"


# ---------------------------------------------------------------------- with Ray


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray as processes of this machine that report nothing."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("ray.serve")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or workers get nothing where anything else runs


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "img2img", *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_here")
def test_ray_data_is_killed_and_goes_on(bundle: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    count, out = 60, tmp_path / "out"
    sources = make_sources(tmp_path, count)
    table = pyarrow.table({"image": [encoded(photo(20, 20, seed=1)), b"no image", None]})
    parquet.write_table(table, tmp_path / "table.parquet")
    line = command("run", ",".join(TASKS), *sources, tmp_path / "table.parquet", "--bundle", bundle, "--out", out)
    line += ["--launcher", "ray", "--workers", "1", "--json"]
    with subprocess.Popen(line, start_new_session=True) as first:
        while not ((out / MANIFEST).is_file() and (out / MANIFEST).stat().st_size):
            assert first.poll() is None
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    some = (out / MANIFEST).read_bytes().count(b"\n")
    again = subprocess.run(line, stdout=subprocess.PIPE, text=True)
    assert again.returncode == 1, "some are broken"
    done = json.loads(again.stdout)
    assert done["before"] > 0
    assert done["before"] + done["images"] == 3 * count + 1 + 3
    assert some < len(TASKS) * 3 * count, "in the middle"
    rows = manifest_of(out)
    kept = [row for row in rows if not row["input"].startswith("table/")]
    of_table = {row["input"]: row["error"] for row in rows if row["input"].startswith("table/")}
    assert len(of_table) == 3
    assert of_table["table/00000000"] is None
    assert all(of_table[f"table/{n:08d}"] for n in (1, 2))
    (out / MANIFEST).write_text("".join(json.dumps(row) + "\n" for row in kept))
    for path in out.glob("*/table/*"):
        path.unlink()
    check_results(out, bundle, tmp_path, count)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_here")
def test_ray_serve_has_the_same_page_and_answers_and_its_bundle_is_replaced(tmp_path: Path) -> None:
    import ray

    from img2img.launch.ray_service import serve_on_ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, file = image_bundle(tmp_path / "first"), task_file(tmp_path / "first", tmp_path / "second", "night")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        token = "a token of this test"
        url = serve_on_ray(first, port=port, min_replicas=2, replicas=2, token=token, wait=False)
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
            assert "<title>" in http.get("/").text
            assert http.get("/readyz").text == "ready\n"
            for task in TASKS:
                assert same(
                    opened(http.post(f"{API}/run/{task}", content=encoded(photo()))), img2img.load(first).run(task, photo())
                )
            assert http.post(f"{API}/run/night", content=encoded(photo())).status_code == 404
            answer = http.post(f"{API}/tasks", content=file.read_bytes(), headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 201
            expected = img2img.load(first).run("night", photo())
            until, in_order = time.monotonic() + 300, 0
            while in_order < 10:  # the other replica follows
                assert time.monotonic() < until
                answer = http.post(f"{API}/run/night", content=encoded(photo()))
                in_order = in_order + 1 if answer.status_code == 200 else 0
            assert same(opened(answer), expected)
            backbone: dict[str, object] = {"kind": "image_transformer", "width": 5, "blocks": 1, "head_kernel": 3}
            other = make_bundle(tmp_path / "other", backbone, {"colour": {"kind": "colourisation"}})
            old, new = (img2img.load(one).run("colour", photo()) for one in (first, other))
            answers, ended = list[bool](), threading.Event()

            def ask() -> None:
                while not ended.wait(0.05):
                    answer = opened(http.post(f"{API}/run/colour", content=encoded(photo())))
                    answers.append(same(answer, old) or same(answer, new))

            with ThreadPoolExecutor(1) as pool:
                asking = pool.submit(ask)
                assert serve_on_ray(other, port=port, min_replicas=2, replicas=2, wait=False) == url
                ended.set()
                asking.result(600)
            assert all(answers)
            assert len(answers) > 1, "it was asked meanwhile"
            assert same(opened(http.post(f"{API}/run/colour", content=encoded(photo()))), new)
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()


def test_what_a_replica_runs_at_once_does_not_depend_on_the_machine_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images_at_once(Limits(), None, "auto", 0) == images_at_once(Limits(), None, "cpu", 1) == 2
    assert images_at_once(Limits(), Batching(), "auto", 0.5) == images_at_once(Limits(), None, "cuda:1", 1) == 16
    assert images_at_once(Limits(), Batching(batch_max=4), "auto", 0) == 8
    assert images_at_once(Limits(concurrency=3), Batching(batch_max=4), "auto", 1) == 3
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("img2img.launch.ray_service.serve_on_ray", lambda bundle, **options: asked.append(options))
    monkeypatch.setattr("img2img.inference.device.chosen_device", None)
    assert CliRunner().invoke(app, ["serve", "starter", "--launcher", "ray", "--device", "cuda"]).exit_code == 0
    assert (asked[0]["device"], asked[0]["limits"]) == ("cuda", Limits())


def test_a_cluster_has_room_for_a_process_a_gpu_or_else_a_core() -> None:
    assert processes_for({"CPU": 8.0}, None) == (0, 8)
    assert processes_for({"CPU": 8.0, "GPU": 2.0}, None) == (1, 2)
    assert processes_for({"CPU": 8.0, "GPU": 2.0}, 0.25) == (0.25, 8)
    assert processes_for({"CPU": 8.0, "GPU": 2.0}, 0) == (0, 8)
    assert processes_for({}, None) == (0, 1)
    with pytest.raises(InputError, match=r"--gpus 0\.5: the cluster has no GPU"):
        processes_for({"CPU": 8.0}, 0.5)
