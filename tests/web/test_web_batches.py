"""Requests of many tasks in mixed batches, tasks that come and go while they run, and what Prometheus reads."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from web_bundles import encoded, image_bundle, make_bundle, photo, same, task_file
from web_service import API, Slow, error, opened

import img2img
from img2img import InputError
from img2img.inference import Batching
from img2img.web import Limits, build_app
from img2img.web.served_tasks import ServedTasks

TOKEN = "a token of this test"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
KINDS: list[dict[str, object]] = [
    {"kind": "colourisation"},
    {"kind": "edges", "drawing": "sobel"},
    {"kind": "segmentation", "classes": ["ground", "disk", "sky"]},
    {"kind": "translation"},
]


def many_tasks(folder: Path, count: int) -> Path:
    """A bundle of so many tasks on one small backbone, each with masks of its own."""
    tasks = {f"task{number}": KINDS[number % len(KINDS)] for number in range(count)}
    return make_bundle(folder, {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}, tasks)


def check_answers(url: str, folder: Path, *, tasks: int, requests: int, threads: int) -> None:
    """Ask for images of several sizes at random tasks from many threads: every answer is that of `Model.run`, bit for bit."""
    plain = img2img.load(folder, device="cpu")
    images = [photo(60 - 7 * (number % 3), 44, seed=number) for number in range(4)]
    files = [encoded(image) for image in images]
    expected = {(task, number): plain.run(f"task{task}", image) for task in range(tasks) for number, image in enumerate(images)}
    different = {np.asarray(result.convert("RGB")).tobytes() for result in expected.values()}
    assert len(different) > 0.9 * len(expected), "a crossed answer would be seen"
    rng = np.random.default_rng(0)
    asked = [(int(rng.integers(tasks)), int(rng.integers(len(images)))) for _ in range(requests)]
    here = threading.local()

    def ask(pair: tuple[int, int]) -> bool:
        if not hasattr(here, "client"):
            here.client = httpx.Client(base_url=url, timeout=120, trust_env=False)
        while True:
            try:
                answer = here.client.post(f"{API}/run/task{pair[0]}", content=files[pair[1]])
                return same(opened(answer), expected[pair])
            except httpx.ReadError:  # this thread was held up for so long that its idle connection was closed
                continue

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(ask, asked))


def test_no_answer_is_wrong_or_crossed(local: Callable[..., str], tmp_path: Path) -> None:
    folder = many_tasks(tmp_path / "many", 8)
    model = img2img.load(folder, device="cpu", weights="merged", batching=Batching(batch_max=8))
    check_answers(local(model, concurrency=16), folder, tasks=8, requests=150, threads=12)
    counts = model.batches.counts
    assert counts.calls >= 150
    assert max(counts.tasks) > 1


@pytest.mark.slow
def test_no_answer_of_ten_thousand_is_wrong_or_crossed(local: Callable[..., str], tmp_path: Path) -> None:
    """Of 50 tasks, of which no more than a few are kept in memory."""
    folder = many_tasks(tmp_path / "many", 50)
    options: Any = {"weights_bytes": 2_000_000, "loaded_bytes": 300_000, "batching": Batching(batch_max=8)}
    model = img2img.load(folder, device="cpu", weights="merged", **options)
    check_answers(local(model, concurrency=16), folder, tasks=50, requests=10_000, threads=16)
    assert model.batches.counts.calls >= 10_000
    assert model.weights_kept()["bytes"] <= 2_000_000


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("count", [60, 500])
def test_hundreds_of_tasks_are_served_in_a_fixed_memory(local: Callable[..., str], tmp_path: Path, count: int) -> None:
    folder = many_tasks(tmp_path / "many", count)
    model = img2img.load(folder, device="cpu", weights="merged", weights_bytes=500_000, loaded_bytes=100_000)
    whole = img2img.load(folder, device="cpu")
    url, image = local(model), photo()
    for number in [*range(0, count, max(1, count // 60)), 0]:
        answer = httpx.post(f"{url}{API}/run/task{number}", content=encoded(image), timeout=60, trust_env=False)
        assert same(opened(answer), whole.run(f"task{number}", image))
        assert model.weights_kept()["bytes"] <= 500_000
        assert model.network.loaded_bytes() <= 100_000
    assert len(model.network._tasks.loaded()) < count, "most are in their files alone"


def test_a_file_that_has_gone_or_changed_is_no_fault_of_the_client(local: Callable[..., str], tmp_path: Path) -> None:
    folder = many_tasks(tmp_path / "many", 4)
    url = local(img2img.load(folder, device="cpu", weights="merged", weights_bytes=1, loaded_bytes=1))
    expected = img2img.load(folder).run("task3", photo())
    (folder / "tasks" / "task2.safetensors").unlink()
    shutil.copy(folder / "tasks" / "task1.safetensors", folder / "tasks" / "task0.safetensors")
    for task in ("task2", "task0"):
        assert "try again" in error(httpx.post(f"{url}{API}/run/{task}", content=encoded(photo()), timeout=60), 503)
    assert same(opened(httpx.post(f"{url}{API}/run/task3", content=encoded(photo()), timeout=60)), expected)


# ---------------------------------------------------------------------- tasks that come and go


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return image_bundle(tmp_path / "own")


def batched(folder: Path) -> Any:
    return img2img.load(folder, device="cpu", weights="merged", loaded_bytes=1 << 20, batching=Batching(batch_max=8))


def names(url: str) -> list[str]:
    return [task["name"] for task in httpx.get(f"{url}{API}/tasks", trust_env=False).json()["tasks"]]


def test_a_task_is_added_and_deleted_over_http(local: Callable[..., str], own: Path, tmp_path: Path) -> None:
    file, before = task_file(own, tmp_path / "copy", "night"), (own / "bundle.json").read_text()
    url = local(batched(own), token=TOKEN)
    with httpx.Client(base_url=url, timeout=60, trust_env=False, headers=AUTHORISED) as http:
        assert "no task 'night'" in error(http.post(f"{API}/run/night", content=encoded(photo())), 404)
        added = http.post(f"{API}/tasks", content=file.read_bytes())
        assert (added.status_code, added.json()["name"]) == (201, "night")
        expected = img2img.load(tmp_path / "copy").run("night", photo())
        assert same(opened(http.post(f"{API}/run/night", content=encoded(photo()))), expected)
        assert names(url) == ["disks", "colour", "edges", "night"] == list(img2img.load(own).tasks), "it is in the bundle"
        assert "replace=true" in error(http.post(f"{API}/tasks", content=file.read_bytes()), 409)
        again = http.post(f"{API}/tasks", content=file.read_bytes(), params={"name": "dusk"})
        assert again.json()["tasks"][-1] == "dusk"
        for name in ("dusk", "night"):
            assert http.delete(f"{API}/tasks/{name}").status_code == 200
        assert "no task" in error(http.post(f"{API}/run/night", content=encoded(photo())), 404)
        assert "no task" in error(http.delete(f"{API}/tasks/night"), 404)
    assert json.loads((own / "bundle.json").read_text()) == json.loads(before)
    assert not (own / "tasks" / "night.safetensors").exists()


def test_a_task_is_replaced_while_it_is_asked_for(local: Callable[..., str], own: Path, tmp_path: Path) -> None:
    """Every answer is the whole one of the old task or of the new one, whose kind is another."""
    file = task_file(own, tmp_path / "copy", "colour2")
    old = img2img.load(own).run("disks", photo(), form=None)
    new = img2img.load(tmp_path / "copy").run("colour2", photo())
    url, stop = local(batched(own), token=TOKEN, concurrency=8), threading.Event()
    seen: list[bool] = []

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            while not stop.is_set():
                answer = opened(http.post(f"{API}/run/disks", content=encoded(photo())))
                seen.append(same(answer, new))
                assert seen[-1] or same(answer, old)

    with ThreadPoolExecutor(5) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        while not seen:
            time.sleep(0.01)
        listing = pool.submit(lambda: [names(url) for _ in iter(lambda: stop.is_set(), True)])
        params = {"name": "disks", "replace": "true"}
        added = httpx.post(f"{url}{API}/tasks", content=file.read_bytes(), params=params, headers=AUTHORISED, timeout=60)
        assert added.status_code == 201
        told = len(seen)
        while len(seen) < told + 12:
            time.sleep(0.01)
        stop.set()
        for one in asking:
            one.result(60)
    assert not seen[0]
    assert all(seen[told + 8 :])
    assert all("disks" in found for found in listing.result()), "it is there all the time"


def test_a_task_that_goes_finishes_what_it_runs(local: Callable[..., str], own: Path) -> None:
    slow = Slow(batched(own))
    url, expected = local(slow, token=TOKEN), img2img.load(own).run("edges", photo())
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(httpx.post, f"{url}{API}/run/edges", content=encoded(photo()), timeout=60)
        assert slow.running.acquire(timeout=30)
        deleted = pool.submit(httpx.delete, f"{url}{API}/tasks/edges", headers=AUTHORISED, timeout=60)
        time.sleep(0.3)
        assert not deleted.done()
        slow.go.set()
        assert same(opened(asked.result()), expected)
        assert deleted.result().json()["tasks"] == ["disks", "colour"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer another token"}, {"Authorization": f"Basic {TOKEN}"}])
def test_only_who_has_the_token_changes_tasks(local: Callable[..., str], own: Path, headers: dict[str, str]) -> None:
    url = local(batched(own), token=TOKEN)
    for answer in (
        httpx.post(f"{url}{API}/tasks", content=b"x", headers=headers, timeout=60),
        httpx.delete(f"{url}{API}/tasks/edges", headers=headers, timeout=60),
    ):
        assert "Authorization: Bearer" in error(answer, 401)
    assert names(url) == ["disks", "colour", "edges"]


def test_without_a_token_nobody_does(http: httpx.Client, reference: Any) -> None:
    assert "--token-file" in error(http.delete(f"{API}/tasks/edges", headers=AUTHORISED), 403)
    with pytest.raises(InputError, match=r"expected 16 or more"):
        build_app(reference, token="short")


def test_files_that_are_no_tasks_of_this_backbone_change_nothing(local: Callable[..., str], own: Path, tmp_path: Path) -> None:
    other = make_bundle(
        tmp_path / "other", {"kind": "image_transformer", "width": 5, "blocks": 1, "head_kernel": 3}, {"a": KINDS[0]}
    )
    sound = (own / "tasks" / "edges.safetensors").read_bytes()
    url, before = local(batched(own), token=TOKEN), (own / "bundle.json").read_bytes()
    for blob, params, said in (
        (b"", {}, "damaged or no task file"),
        (sound[:-9], {"name": "b"}, "the file is damaged"),
        (sound[:-9] + bytes(9), {"name": "b"}, "checksum"),
        (sound, {"name": "../b"}, "letters, digits"),
        ((other / "tasks" / "a.safetensors").read_bytes(), {}, "belongs to the backbone"),
    ):
        assert said in error(httpx.post(f"{url}{API}/tasks", content=blob, params=params, headers=AUTHORISED, timeout=60), 422)
    assert (own / "bundle.json").read_bytes() == before
    assert sorted(path.name for path in (own / "tasks").iterdir()) == [
        "colour.safetensors",
        "disks.safetensors",
        "edges.safetensors",
    ]
    assert opened(httpx.post(f"{url}{API}/run/edges", content=encoded(photo()), timeout=60)).size == photo().size


def test_a_watched_folder_is_followed(
    local: Callable[..., str], own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2img.web.served_tasks.WATCH_SECONDS", 0.05)
    file, url = task_file(own, tmp_path / "copy", "night"), local(batched(own), watch=True)

    def until(expected: list[str]) -> None:
        end = time.monotonic() + 30
        while names(url) != expected and time.monotonic() < end:
            time.sleep(0.05)
        assert names(url) == expected

    shutil.copy(file, own / "tasks")
    description = json.loads((own / "bundle.json").read_text())
    (own / "bundle.json").write_text(json.dumps(description | {"tasks": ["disks", "colour", "night"]}))
    until(["disks", "colour", "night"])
    shutil.copy(own / "tasks" / "edges.safetensors", own / "tasks" / "night.safetensors")
    expected, end = img2img.load(tmp_path / "copy").run("edges", photo()), time.monotonic() + 30
    while (
        not same(opened(httpx.post(f"{url}{API}/run/night", content=encoded(photo()), timeout=60)), expected)
        and time.monotonic() < end
    ):
        time.sleep(0.05)
    assert same(opened(httpx.post(f"{url}{API}/run/night", content=encoded(photo()), timeout=60)), expected)


def test_figures_are_those_of_the_tasks_that_there_are(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is replaced while they are drawn, and several ask at once."""
    tasks, drawing, drawn = ServedTasks(img2img.load(own, weights="merged"), Limits()), threading.Lock(), list[int]()

    def draw(_: Any) -> dict[str, tuple[str, bytes]]:
        assert drawing.acquire(blocking=False), "one at a time"
        drawn.append(len(drawn))
        time.sleep(0.2)
        if len(drawn) == 1:
            tasks._offer()
        drawing.release()
        return {"density": (f"drawing {drawn[-1]}", b"")}

    monkeypatch.setattr("img2img.web.served_tasks.mask_figures", draw)
    with ThreadPoolExecutor(4) as pool:
        shown = [one.result(30)["density"][0] for one in [pool.submit(tasks.mask_figures) for _ in range(4)]]
    assert sorted(shown) == ["drawing 0", "drawing 1", "drawing 1", "drawing 1"]
    assert tasks.mask_figures()["density"][0] == "drawing 1"


# ---------------------------------------------------------------------- what a cluster asks


def sample(text: str, line: str) -> float:
    (found,) = [one for one in text.splitlines() if one.startswith(f"{line} ")]
    return float(found.rpartition(" ")[2])


def test_metrics_and_probes(local: Callable[..., str], own: Path) -> None:
    url = local(batched(own))
    for task, status in (("edges", 200), ("edges", 200), ("colour", 200), ("no such task", 404)):
        assert httpx.post(f"{url}{API}/run/{task}", content=encoded(photo()), timeout=60).status_code == status
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    assert sample(text, 'img2img_requests_total{route="run",task="edges",status="200"}') == 2
    assert sample(text, 'img2img_requests_total{route="run",task="",status="404"}') == 1
    assert "no such task" not in text, "what clients send is no label"
    assert sample(text, "img2img_run_seconds_count") == 3, "what is refused did not run"
    assert sample(text, 'img2img_run_seconds_bucket{le="+Inf"}') == 3
    assert sample(text, "img2img_batch_inputs_total") == sample(text, "img2img_batch_samples_sum") == 3
    assert sample(text, "img2img_weights_hits_total") >= 1
    assert 0 < sample(text, "img2img_weights_bytes") < sample(text, "process_resident_memory_bytes")
    assert sample(text, "img2img_image_memory_bytes") == 0
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert (httpx.get(f"{url}/healthz").status_code, httpx.get(f"{url}/readyz").text) == (200, "ready\n")


def test_a_service_that_stops_lives_and_is_not_ready(reference: Any) -> None:
    from starlette.testclient import TestClient

    app = build_app(reference)
    app.state.service.stop()
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/healthz").status_code == 200
    assert "the service stops" in error(client.get("/readyz"), 503)


def test_an_image_waits_for_the_memory_that_it_takes(own: Path) -> None:
    from img2img.web.memory_limit import MemoryBudget

    budget, order = MemoryBudget(100), []
    inside, go = threading.Semaphore(0), threading.Event()

    def take(name: str, bytes_: int) -> None:
        with budget.take(bytes_):
            order.append(name)
            inside.release()
            assert go.wait(30)

    with ThreadPoolExecutor(4) as pool:
        asked = []
        for name, bytes_, fits in (("a", 60, True), ("b", 30, True), ("large", 500, False), ("c", 10, False)):
            asked.append(pool.submit(take, name, bytes_))
            assert inside.acquire(timeout=30) if fits else not inside.acquire(timeout=0.2)
        assert budget.taken == 90
        go.set()
        for one in asked:
            one.result(30)
    assert order == ["a", "b", "large", "c"], "first come, first served, and one that is too large runs alone"
    assert budget.taken == 0
