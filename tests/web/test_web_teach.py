"""Teach: what comes in is images within bounds, one training at a time, and the task is served when it is done.

The process that trains is mostly a stand-in, which writes the files that a training writes.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import serving
from web_bundles import encoded, photo, same, task_file
from web_service import API, error, opened

import img2img
from img2img.web import TeachOptions
from img2img.web.limits import RefusedError
from img2img.web.teach import Teacher
from img2img.web.teach_files import TeachFiles

# ---------------------------------------------------------------------- files


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, blob in files.items():
            archive.writestr(name, blob)
    return file.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> TeachFiles:
    return TeachFiles(tmp_path / "data", "pairs", TeachOptions(files=6, upload_bytes=50_000, pixels=100_000))


def held(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def unpack(files: TeachFiles, blob: bytes, role: str = "inputs", most: int = 20_000) -> int:
    return files.add_zip(role, io.BytesIO(blob), most=most)


def test_folders_say_what_is_what(files: TeachFiles) -> None:
    image = encoded(photo())
    files.add("inputs", "1.png", image)
    files.add("inputs", "set/Targets/deep/1.png", image)
    content = {
        "x/input/2.png": image,
        "x/target/2.png": image,
        "x/readme.txt": b"x",
        "__MACOSX/x/._2.png": b"x",
        ".hidden.png": b"",
    }
    assert unpack(files, zipped(content)) == 1
    assert held(files.folder) == ["inputs/1.png", "inputs/2.png", "targets/2.png", "targets/deep/1.png"]
    assert files.counts == {"inputs": 2, "targets": 2}
    again = TeachFiles(files.folder, "pairs", TeachOptions())
    assert (again.counts, again.size) == (files.counts, 4 * len(image))


def test_folders_of_other_names_stay_what_they_were_sent_as(files: TeachFiles) -> None:
    """Folders a, b and c are folders of images, and one called targets deep inside is too."""
    image = encoded(photo())
    for role in ("inputs", "targets"):
        for folder in "ab":
            files.add(role, f"{folder}/1.png", image)
    files.add("inputs", "x/y/targets/1.png", image)
    assert files.counts == {"inputs": 3, "targets": 2}


def test_no_image_takes_the_place_of_another(files: TeachFiles) -> None:
    image = encoded(photo())
    files.add("inputs", "day/1.png", image)
    files.add("targets", "1.png", image)
    for name, said in (("targets/1.png", "as '1.png' has"), ("day/1.png/2.png", "where its folder would be"), ("day.png", "")):
        if said:
            with pytest.raises(RefusedError, match=said) as refused:
                files.add("inputs", name, image)
            assert refused.value.status == 409
    files.add("inputs", "set.png/2.png", image)
    with pytest.raises(RefusedError, match="a folder where it would be"):
        files.add("inputs", "set.png", image)
    files.add("targets", "1.png", image)
    assert files.counts == {"inputs": 2, "targets": 1}


def test_a_zip_that_lies_about_its_number_of_files(files: TeachFiles) -> None:
    blob = bytearray(zipped({f"{number}.txt": b"" for number in range(13)}))
    end = blob.rindex(b"PK\5\6")
    blob[end + 8 : end + 12] = (1).to_bytes(2, "little") * 2
    with pytest.raises(RefusedError, match="too many files in the zip"):
        unpack(files, bytes(blob))


def test_folders_around_the_images_do_not_count(files: TeachFiles) -> None:
    image = encoded(photo())
    unpack(files, zipped({"day/all/1.png": image, "day/all/2.png": image}))
    assert files.root("inputs") == files.folder / "inputs" / "day" / "all"


NAMES = ["../a.png", "a/../../b.png", "/etc/a.png", "a/b.png/..", "C:\\a.png", "..\\..\\a.png", "a\0.png", "a\n.png", "", ".."]
NAMES += ["x" * 130 + ".png", "a/" * 9 + "b.png"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_elsewhere(files: TeachFiles, tmp_path: Path, name: str) -> None:
    image = encoded(photo())
    with pytest.raises(RefusedError) as refused:
        files.add("inputs", name, image)
    assert refused.value.status in (415, 422)
    if name and not name.endswith("..") and "\0" not in name:
        with pytest.raises(RefusedError, match="is no name of an image"):
            unpack(files, zipped({name: image}))
    assert held(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "blob", "status", "said"),
    [
        ("a.txt", b"text", 415, "is no image"),
        ("a.pt", b"\x80\x04.", 415, "is no image"),
        ("a.png", b"\x80\x04\x95pickle", 415, "no image that can be read"),
        ("a.svg", b"<svg/>", 415, "is no image"),
        ("a.png", encoded(photo(400, 300)), 413, "100,000 at most"),
        ("a.png", encoded(photo()) + bytes(60_000), 413, "50,000 for all images"),
    ],
)
def test_what_is_no_image_or_too_large(files: TeachFiles, name: str, blob: bytes, status: int, said: str) -> None:
    with pytest.raises(RefusedError, match=said) as refused:
        files.add("inputs", name, blob)
    assert refused.value.status == status
    if Path(name).suffix == ".png":
        with pytest.raises(RefusedError, match=f"{said}|larger than 20,000 bytes"):
            unpack(files, zipped({name: blob}))
    assert held(files.folder) == []
    with pytest.raises(RefusedError, match="no 'other' in this training"):
        files.add("other", "a.png", encoded(photo()))


def test_there_are_no_more_files_than_may_be(files: TeachFiles) -> None:
    image = encoded(photo(8, 8))
    for number in range(6):
        files.add("inputs", f"{number}.png", image)
    files.add("inputs", "0.png", image)  # in its place
    with pytest.raises(RefusedError, match="too many files: expected 6 at most"):
        files.add("inputs", "7.png", image)
    with pytest.raises(RefusedError, match="too many files in the zip"):
        unpack(files, zipped({f"{number}.txt": b"" for number in range(13)}))


def test_bombs_and_damage(files: TeachFiles) -> None:
    bomb = zipped({"a.png": bytes(30_000_000)})
    assert len(bomb) < 50_000
    forged = bomb.replace((30_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))  # it says that it is small
    for blob in (bomb, forged):
        with pytest.raises(RefusedError) as refused:
            unpack(files, blob)
        assert refused.value.status in (413, 415, 422)
    whole = zipped({"a.png": encoded(photo())})
    encrypted = bytearray(whole)
    for signature, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        encrypted[whole.index(signature) + at] |= 1
    broken = bytearray(whole)
    broken[60:90] = bytes(30)
    end = whole.rindex(b"PK\5\6")
    longer = whole[: end + 10] + b"\xff\xff" + whole[end + 12 :]
    wide = whole[:end] + b"PK\6\7" + bytes(16) + whole[end:]
    for blob in (
        b"",
        b"no zip" * 20,
        whole[:-30],
        bytes(encrypted),
        bytes(broken),
        longer,
        wide,
        whole[: end - 20] + whole[end:],
    ):
        with pytest.raises(RefusedError) as refused:
            unpack(files, blob)
        assert refused.value.status in (413, 415, 422), blob[:20]
    assert held(files.folder) == []


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_refused_whose_compression_takes_any_memory_at_once(
    files: TeachFiles, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, opened = zipped({"a.png": encoded(photo())}, kind), list[str]()
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda _, entry, **more: opened.append(entry.filename))
    with pytest.raises(RefusedError, match=r"'a.png' is compressed in an unusual way: expected .*deflated or stored") as refused:
        unpack(files, blob)
    assert refused.value.status == 422
    assert opened == [], "it is refused before any of it is unpacked"
    assert held(files.folder) == []


# ---------------------------------------------------------------------- a training

STAND_IN = """
import json, pathlib, shutil, sys, time
name, bundle, ready, preview, control = sys.argv[1], *map(pathlib.Path, sys.argv[2:])
run = pathlib.Path("run"); (run / "metrics").mkdir(parents=True, exist_ok=True); (run / "previews").mkdir(exist_ok=True)
rows = ["step,loss"] + [f"{step},{1 / step}" for step in range(10, 60, 10)]
(run / "metrics" / f"{name}.csv").write_text("\\n".join(rows))
draft = shutil.copy(preview, run / "draft.jpg"); draft.replace(run / "previews" / f"{name}.jpg")  # whole, as a training writes it
print("learns", flush=True)
while not control.exists():
    time.sleep(0.02)
if said := control.read_text():
    print("error: " + said)
    sys.exit(1)
shutil.copy(ready, bundle / "tasks" / f"{name}.safetensors")
content = json.loads((bundle / "bundle.json").read_text())
content["tasks"].append(name)
(bundle / "bundle.json").write_text(json.dumps(content))
"""


class Class:
    """A service that teaches, and what decides how its stand-in ends."""

    def __init__(self, folder: Path, bundle: Path, model: Any) -> None:
        self.folder, self.bundle, self.control = folder / "teach", bundle, folder / "control"
        self.model, self.commands = model, list[list[str]]()
        self.options = TeachOptions(folder=self.folder, steps=1000)

    def end(self, said: str = "") -> None:
        draft = self.control.with_suffix(".draft")
        draft.write_text(said)
        draft.replace(self.control)


@pytest.fixture
def room(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Class:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    ready, preview = task_file(own, tmp_path / "copy", "night"), tmp_path / "preview.jpg"
    preview.write_bytes(encoded(photo(90, 60), "JPEG"))
    made = Class(tmp_path, own, img2img.load(str(own), weights="merged"))
    real = Teacher._command

    def command(self: Teacher, job: Any) -> list[str]:
        made.commands.append(real(self, job))
        return [sys.executable, "-c", STAND_IN, job.name, str(own), str(ready), str(preview), str(made.control)]

    monkeypatch.setattr(Teacher, "_command", command)
    return made


@contextlib.contextmanager
def teaching(model: Any, options: TeachOptions) -> Iterator[httpx.Client]:
    with serving(model, teach=options) as url, httpx.Client(base_url=url + API, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture
def client(room: Class) -> Iterator[httpx.Client]:
    with serving(room.model, teach=room.options) as url, httpx.Client(base_url=url + API, timeout=60, trust_env=False) as http:
        yield http


def state(http: httpx.Client) -> Any:
    return http.get("/teach").json()["job"]


def wait(http: httpx.Client, *states: str, until: Callable[[Any], bool] = lambda job: True) -> Any:
    end = time.monotonic() + 30
    while (job := state(http))["state"] not in states or not until(job):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def send(http: httpx.Client, name: str = "night", **more: Any) -> None:
    assert http.post("/teach", json={"name": name, "kind": "pairs", "steps": 100, **more}).status_code == 200
    roles = {"pairs": ("inputs", "targets"), "labels": ("images", "labels"), "style": ("style",)}[more.get("kind", "pairs")]
    for role in roles:
        for number in range(10 if role != "style" else 1):
            assert http.put(f"/teach/files/{role}/{number}.png", content=encoded(photo(seed=number))).status_code == 200


def test_from_images_to_a_task_that_is_served(room: Class, client: httpx.Client) -> None:
    before = {path.name: path.read_bytes() for path in (room.bundle / "tasks").iterdir()}
    answers = {task: client.post(f"/run/{task}", content=encoded(photo())).content for task in ("colour", "edges")}
    send(client)
    assert state(client)["counts"] == {"inputs": 10, "targets": 10}
    assert client.post("/teach/start").json()["job"]["state"] == "running"
    job = wait(client, "running", until=lambda job: bool(job["preview"]))
    assert (job["step"], job["steps"], job["loss"][0], len(job["loss"])) == (50, 100, [10, 0.1], 5)
    assert job["left"] >= 0
    assert opened_jpeg(client.get("/teach/preview")) == (90, 60)
    assert "is not done" in error(client.post("/teach", json={"name": "other", "kind": "style"}), 409)
    assert "is running" in error(client.post("/teach/start"), 409)
    assert "waits for images" in error(client.put("/teach/files/inputs/9.png", content=encoded(photo())), 409)
    assert "not done" in error(client.get("/teach/file"), 404)
    assert "no task 'night'" in error(client.post("/run/night", content=encoded(photo())), 404)
    room.end()
    wait(client, "done")
    assert [task["name"] for task in client.get("/tasks").json()["tasks"]] == ["disks", "colour", "edges", "night"]
    assert same(opened(client.post("/run/night", content=encoded(photo()))), img2img.load(str(room.bundle)).run("night", photo()))
    file = client.get("/teach/file")
    assert file.content == (room.bundle / "tasks" / "night.safetensors").read_bytes()
    assert 'filename="night.safetensors"' in file.headers["content-disposition"]
    assert {task: client.post(f"/run/{task}", content=encoded(photo())).content for task in answers} == answers
    after = {path.name: path.read_bytes() for path in (room.bundle / "tasks").iterdir()}
    assert {name: after[name] for name in before} == before
    assert not (room.folder / "night" / "data").exists()
    assert client.request("DELETE", "/teach").json()["job"] is None
    assert "already" in error(client.post("/teach", json={"name": "night", "kind": "pairs"}), 409)
    (command,) = room.commands
    assert command[3:11] == ["add-task", "--out", "run", "--steps", "100", "--resize", "256", "--inputs"]
    assert command[11:17] == ["data/inputs", "--targets", "data/targets", "--", str(room.bundle), "night"]
    assert "evaluation.previews=4" in command


def test_the_time_left_does_not_count_loading_as_steps(room: Class, client: httpx.Client) -> None:
    send(client)
    client.post("/teach/start")
    wait(client, "running", until=lambda job: job["step"] == 50)
    log = room.folder / "night" / "run" / "metrics" / "night.csv"
    written = log.stat().st_mtime
    with open(log, "a") as file:
        file.write("\n60,0.01")
    os.utime(log, (written + 10, written + 10))  # ten steps in ten seconds, and 40 to go
    job = wait(client, "running", until=lambda job: job["step"] == 60)
    assert 30 <= job["left"] <= 51


def opened_jpeg(answer: httpx.Response) -> tuple[int, int]:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    from PIL import Image

    return Image.open(io.BytesIO(answer.content)).size


def test_stop_restart_and_go_on(room: Class) -> None:
    for _ in range(2):  # the second service finds what the first one left
        with teaching(room.model, room.options) as http:
            if state(http) is None:
                send(http)
            assert http.post("/teach/start").status_code == 200
            wait(http, "running", until=lambda job: job["step"] == 50)
            assert http.post("/teach/stop").json()["job"]["state"] == "stopped"
            assert http.post("/teach/start").json()["job"]["state"] == "running"
        assert json.loads((room.folder / "night" / "job.json").read_text())["state"] == "stopped"  # as the service ended
    with teaching(room.model, room.options) as http:
        assert state(http)["state"] == "stopped"
        assert state(http)["counts"] == {"inputs": 10, "targets": 10}
        assert http.request("DELETE", "/teach").json()["job"] is None
    assert held(room.folder) == []


def test_a_training_that_fails_says_why(room: Class, client: httpx.Client) -> None:
    send(client, kind="labels", classes=["ground", "a, b"], values=[0, 255])
    client.post("/teach/start")
    task = json.loads((room.folder / "night" / "task.yaml").read_text())
    assert task["task"] == {"kind": "segmentation", "loss": {"cross_entropy": 1.0, "dice": 1.0}}
    assert task["data"] == {
        "kind": "image_label_folder", "images": "data/images", "labels": "data/labels", "classes": ["ground", "a, b"],
        "values": [0, 255],
    }  # fmt: skip
    room.end("the labels hold 7: expected 0 or 255")
    assert wait(client, "failed")["message"] == "the labels hold 7: expected 0 or 255"
    room.control.unlink()
    assert client.post("/teach/start").json()["job"]["state"] == "running"
    room.end()
    wait(client, "done")


def test_a_training_ends_with_its_time(room: Class) -> None:
    options = TeachOptions(folder=room.folder, seconds=1)
    with teaching(room.model, options) as http:
        send(http, kind="style")
        http.post("/teach/start")
        assert "more than 1 s: use fewer steps" in wait(http, "failed")["message"]
        assert "expected 1 s at most" in error(http.post("/teach/start"), 409)
    assert room.commands[0][10:12] == ["--style", "data/style/0.png"]


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"name": "colour"}, 409, "already"),
        ({"name": "../x"}, 422, "use letters"),
        ({"name": "--help"}, 422, "task name '--help'"),
        ({"name": "a" * 61}, 422, "name"),
        ({"kind": "code"}, 422, "kind"),
        ({"steps": 1001}, 422, "1 to 1,000"),
        ({"kind": "labels", "classes": ["ground"]}, 422, "two or more"),
        ({"kind": "labels", "classes": ["a", "b"], "values": [1]}, 422, "one for each"),
        ({"values": [300]}, 422, "values"),
    ],
)
def test_what_cannot_be_taught(room: Class, client: httpx.Client, asked: dict[str, Any], status: int, said: str) -> None:
    assert said in error(client.post("/teach", json={"name": "night", "kind": "pairs", **asked}), status)
    assert state(client) is None
    assert not room.folder.exists()


def test_the_folder_of_an_earlier_training_is_kept(room: Class, client: httpx.Client) -> None:
    (room.folder / "night").mkdir(parents=True)
    said = error(client.post("/teach", json={"name": "night", "kind": "pairs"}), 409)
    assert "the folder of an earlier training has the name 'night'" in said
    assert "choose another name" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "the request's body is no JSON: expecting property name enclosed in double quotes, after 1 characters"),
        (b"[]", "the request's body: input should be"),
    ],
)
def test_a_body_that_is_not_what_is_expected(client: httpx.Client, content: bytes, said: str) -> None:
    assert said in error(client.post("/teach", content=content, headers={"content-type": "application/json"}), 422)


def test_too_few_images_and_a_zip(room: Class, client: httpx.Client) -> None:
    client.post("/teach", json={"name": "night", "kind": "pairs"})
    assert "got 0 images as inputs" in error(client.post("/teach/start"), 422)
    content = {f"{role}/{number}.png": encoded(photo(seed=number)) for role in ("inputs", "targets") for number in range(5)}
    answer = client.post("/teach/zip", params={"role": "inputs"}, content=zipped(content))
    assert answer.json() == {"counts": {"inputs": 5, "targets": 5}, "others": 0}
    foreign = client.post("/teach/start", headers={"Origin": "https://evil.example"})
    assert "another site" in error(foreign, 403)
    assert "another site" in error(client.request("DELETE", "/teach", headers={"Sec-Fetch-Site": "cross-site"}), 403)


@pytest.mark.parametrize(
    ("path", "method", "said"), [("/teach", "DELETE", "was discarded"), ("/teach/start", "POST", "has begun")]
)
def test_what_is_still_being_sent_is_refused_when_the_training_begins_or_is_discarded(
    room: Class, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, method: str, said: str
) -> None:
    send(client)
    before, here, go = held(room.folder), threading.Event(), threading.Event()

    def wait_and_open(blob: bytes, limits: Any) -> None:
        here.set()
        assert go.wait(30)

    monkeypatch.setattr("img2img.web.teach_files.open_upload", wait_and_open)
    with ThreadPoolExecutor(1) as pool:
        content = zipped({f"{number}.png": encoded(photo()) for number in (97, 98, 99)})
        late = pool.submit(client.post, "/teach/zip", params={"role": "inputs"}, content=content)
        assert here.wait(30)
        assert client.request(method, path).status_code == 200
        go.set()
        assert f"the training {said}" in error(late.result(30), 409)
    images = [name for name in held(room.folder) if name.endswith(".png")]
    assert images == ([] if method == "DELETE" else [name for name in before if name.endswith(".png")])


@pytest.mark.slow
def test_a_real_training(tmp_path: Path, bundle: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = img2img.load(str(own), weights="merged")
    options = TeachOptions(folder=tmp_path / "teach")
    with teaching(model, options) as http:
        assert http.post("/teach", json={"name": "night", "kind": "pairs", "steps": 60}).status_code == 200
        for number in range(10):
            image = photo(120, 110, seed=number)
            for role, shown in (("inputs", image), ("targets", image.point(lambda value: 255 - value))):
                assert http.put(f"/teach/files/{role}/{number}.png", content=encoded(shown)).status_code == 200
        http.post("/teach/start")
        end = time.monotonic() + 500
        while (job := state(http))["state"] == "running" and time.monotonic() < end:
            time.sleep(1)
        assert job["state"] == "done", job["message"]
        assert job["loss"][-1][0] == 60
        assert http.get("/teach/preview").status_code == 200
        assert opened(http.post("/run/night", content=encoded(photo()))).size == photo().size
        assert str(tmp_path) not in http.get("/teach/file").content.decode("latin-1")
