"""Time, memory, the disk and the end: what a service does when it gets too much, and when it is told to stop."""

import asyncio
import errno
import logging
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from starlette.requests import Request
from web_bundles import encoded, photo, same
from web_service import API, Slow, error, opened, start

import img2img
from img2img.web import Limits, log_rate_limit
from img2img.web.image_decode import decode, open_upload
from img2img.web.limits import RefusedError
from img2img.web.memory_limit import bytes_needed, max_pixels
from img2img.web.service import Service


def ask(url: str, task: str = "colour", image: Image.Image | None = None, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}{API}/run/{task}", content=encoded(image or photo()), timeout=60, trust_env=False, **more)


# ---------------------------------------------------------------------- time


class Endless(Slow):
    """A model that runs one layer after another until somebody stops it."""

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.running.release()
        layer = torch.nn.Identity()
        while not self.go.is_set():
            layer(torch.zeros(1))
            time.sleep(0.01)
        return self._model.run(*arguments, **options)


def test_an_image_that_takes_too_long_is_stopped_and_its_place_is_free(local: Callable[..., str], reference: Any) -> None:
    endless = Endless(reference)
    url = local(endless, concurrency=1, run_seconds=1)
    assert "took more than 1 s" in error(ask(url), 503)
    assert httpx.get(f"{url}{API}/health").json()["running"] == 0
    endless.go.set()
    assert same(opened(ask(url)), reference.run("colour", photo()))


def test_one_that_cannot_be_stopped_is_answered_and_keeps_its_place(local: Callable[..., str], reference: Any) -> None:
    slow = Slow(reference)
    url = local(slow, concurrency=1, run_seconds=1)
    assert "took more than 1 s" in error(ask(url), 503)
    assert httpx.get(f"{url}{API}/health").json()["running"] == 1
    slow.go.set()
    assert ask(url).status_code == 200


def test_nothing_runs_on_for_who_has_left(local: Callable[..., str], reference: Any) -> None:
    endless = Endless(reference)
    url = local(endless, concurrency=1, run_seconds=60)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}{API}/run/colour", content=encoded(photo()), timeout=2)
    until = time.monotonic() + 20
    while httpx.get(f"{url}{API}/health").json()["running"] and time.monotonic() < until:
        time.sleep(0.1)
    assert httpx.get(f"{url}{API}/health").json()["running"] == 0


def test_threads_that_nobody_stops_run_as_ever(reference: Any) -> None:
    from img2img.inference.cancellation import Cancellation

    stop = Cancellation()
    stop.cancel(RuntimeError("stopped"))
    with stop.watching(), pytest.raises(RuntimeError, match="stopped"):
        reference.run("colour", photo())
    assert same(reference.run("colour", photo()), reference.run("colour", photo()))


# ---------------------------------------------------------------------- memory and the disk


def test_the_limits_follow_from_the_memory(reference: Any) -> None:
    for task in reference.tasks:
        for most in (500_000_000, 2_000_000_000):
            side = round(max_pixels(reference, task, most) ** 0.5)
            assert bytes_needed(reference, [task], (side, side)) <= most < bytes_needed(reference, [task], (side + 8, side + 8))
    small, large = (Service(reference, Limits(memory_bytes=n)).tasks.pixels for n in (1_000_000_000, 4_000_000_000))
    assert all(small[task] < large[task] <= 24_000_000 for task in small)
    with pytest.raises(img2img.InputError, match=r"memory_bytes=1,000: disks .*more memory"):
        Service(reference, Limits(memory_bytes=1000))


def test_what_does_not_fit_is_refused_before_it_is_decoded(classes: Path, local: Callable[..., str], reference: Any) -> None:
    url = local(reference, memory_bytes=300_000_000, concurrency=1)
    large = httpx.get(f"{url}{API}/tasks").json()["tasks"][1]["pixels"]
    side = round(large**0.5)
    said = error(ask(url, image=Image.new("L", (side + 60, side + 60))), 413)
    assert f"expected 0.3 GB at most, such as {large:,} pixels; make it smaller" in said
    # A classification sees its image whole, at any side.
    birds = local(img2img.load(str(classes), weights="merged"), memory_bytes=300_000_000, concurrency=1)
    assert ask(birds, "birds", params={"side": 64}).status_code == 200
    assert "give a smaller side" in error(ask(birds, "birds", params={"side": 3000}), 413)


def test_a_preview_takes_memory_as_a_run_does(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, memory_bytes=300_000_000, concurrency=1)
    said = error(httpx.post(f"{url}{API}/preview", content=encoded(Image.new("L", (3000, 3000)))), 413)
    assert "3000 x 3000 pixels would take 0.5 GB to be shown: expected 0.3 GB at most, 5,000,000 pixels" in said
    assert httpx.post(f"{url}{API}/preview", content=encoded(photo())).status_code == 200


def test_a_tiff_of_tiles_larger_than_its_image_is_refused(local: Callable[..., str], reference: Any, tmp_path: Path) -> None:
    """Whole tiles are decoded: those of 64 x 64 pixels of an image may take gigabytes."""
    url = local(reference)
    for tile, status in ((256, 200), (2048, 413), (30_000, 413)):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(16 * (tile // 16),) * 2, compression="zlib")
        blob = (tmp_path / "a.tif").read_bytes()
        assert len(blob) < 1_000_000
        answer = httpx.post(f"{url}{API}/run/edges", content=blob, timeout=60)
        assert answer.status_code == status, tile
        assert status == 200 or "save it anew, in strips or small tiles" in error(answer, 413)


@pytest.mark.slow
def test_small_files_of_large_images_stay_within_the_memory(bundle: Path, tmp_path: Path) -> None:
    most = 700_000_000
    service = start(bundle, tmp_path / "talk.txt", memory_bytes=most, concurrency=1)
    status = Path(f"/proc/{service.process.pid}/status")
    if not status.exists():
        pytest.skip("no /proc")

    def resident(name: str) -> int:
        return 1024 * int(status.read_text().split(f"{name}:")[1].split()[0])

    tasks = httpx.get(f"{service.url}{API}/tasks", trust_env=False).json()["tasks"]
    ask(service.url)  # what is loaded at the first
    before = resident("VmRSS")
    for task in tasks:
        side = int(task["pixels"] ** 0.5)
        blob = encoded(Image.new("1", (side, side)))
        assert len(blob) < 3000
        answer = httpx.post(f"{service.url}{API}/run/{task['name']}", content=blob, timeout=300, trust_env=False)
        assert answer.status_code == 200
        assert resident("VmHWM") - before <= most, task
    service.stop(signal.SIGTERM)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/secret"), "disk is full"),
    ],
)
def test_what_there_is_too_little_of_is_503(local: Callable[..., str], reference: Any, failure: Exception, said: str) -> None:
    class Failing(Slow):
        def run(self, *arguments: Any, **options: Any) -> Any:
            raise failure

    answer = ask(local(Failing(reference)))
    assert said in error(answer, 503)
    assert answer.headers["retry-after"] == "2"


def test_a_full_temporary_folder_is_503(local: Callable[..., str], reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    url = local(reference)
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
    answer = httpx.post(f"{url}{API}/run/colour", files={"image": encoded(photo())})
    assert "disk is full" in error(answer, 503)


# ---------------------------------------------------------------------- the log


def test_damaged_images_do_not_fill_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    blob = encoded(photo(300, 300), "TIFF", compression="tiff_lzw")
    with log_rate_limit.rate_limited_logging():
        for cut in range(60, len(blob), len(blob) // 200):
            try:
                open_upload(blob[:cut] + bytes(40), Limits())
                decode(blob[:cut] + bytes(40))
            except RefusedError:
                continue
        for number in range(500):
            warnings.warn(f"number {number} of a library", stacklevel=1)
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    said = capfd.readouterr().err
    assert said.count("Invalid HTTP request received.") == log_rate_limit.MAX_REPEATS
    assert len(said) < 3000


def test_the_log_says_how_much_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sparing = log_rate_limit.RateLimitFilter()

    def said() -> str | None:
        record = logging.LogRecord("a", logging.ERROR, "b.py", 3, "failed %d", (1,), None)
        return record.getMessage() if sparing.filter(record) else None

    assert [said() for _ in range(100)] == ["failed 1"] * 5 + [None] * 95
    now = log_rate_limit.REPEAT_SECONDS + 1
    assert said() == "failed 1 (95 more like it in the minutes before)"
    assert said() == "failed 1"


# ---------------------------------------------------------------------- the end


@pytest.mark.slow
def test_what_is_in_finishes_and_the_new_is_told(bundle: Path, tmp_path: Path, reference: Any) -> None:
    service = start(bundle, tmp_path / "talk.txt", concurrency=1, grace_seconds=60)
    image = photo(600, 600)
    with ThreadPoolExecutor(3) as pool, httpx.Client(base_url=service.url, trust_env=False, timeout=60) as kept:
        assert kept.get("/").status_code == 200
        asked = [pool.submit(ask, service.url, "edges", image) for _ in range(3)]
        while httpx.get(f"{service.url}{API}/health", trust_env=False).json()["waiting"] < 2:
            time.sleep(0.02)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        new = ask(service.url)
        assert "the service stops" in error(new, 503)
        assert new.headers["retry-after"] == "2"
        assert "the service stops" in error(httpx.get(f"{service.url}{API}/health", trust_env=False), 503)
        assert all(same(opened(answer.result()), reference.run("edges", image)) for answer in asked)
        said, _ = service.process.communicate(timeout=60)  # a connection that is kept does not hold it
    assert (service.process.returncode, said) == (-signal.SIGTERM, "")
    assert list(service.temporary.iterdir()) == []


@pytest.mark.slow
def test_what_does_not_finish_in_time_is_told_and_the_service_ends(bundle: Path, tmp_path: Path) -> None:
    service = start(bundle, tmp_path / "talk.txt", concurrency=1, grace_seconds=2)
    image = Image.new("RGB", (2200, 2200))
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, service.url, "edges", image) for _ in range(3)]
        while httpx.get(f"{service.url}{API}/health", trust_env=False).json()["waiting"] < 2:
            time.sleep(0.02)
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        answers = [answer.result() for answer in asked]
        service.process.communicate(timeout=60)
    assert "the service stops" in error(answers[-1], 503)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert time.monotonic() - began < 10


def test_a_file_that_is_on_its_way_is_active_until_the_end(reference: Any) -> None:
    """The drain waits for it; when the time is over it is told, rather than cut off."""
    service = Service(reference, Limits())

    async def upload(messages: list[dict[str, Any]], *, end: bool) -> bytes:
        async def receive() -> Any:
            await asyncio.sleep(0.05)
            return messages.pop(0) if messages else await asyncio.Event().wait()

        request = Request({"type": "http", "method": "POST", "headers": []}, receive)

        async def read() -> bytes:
            with service.changing():
                return b"".join([part async for part in service.body(request)])

        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0.02)
        assert service.busy
        service.stop()
        if end:
            await asyncio.sleep(0.1)
            service.end()
        return await reading

    whole = [{"type": "http.request", "body": part, "more_body": more} for part, more in ((b"one ", True), (b"two", False))]
    assert asyncio.run(upload([*whole], end=False)) == b"one two"
    assert not service.busy
    with pytest.raises(RefusedError, match="the service stops"), service.changing():
        pass
    service = Service(reference, Limits())
    with pytest.raises(RefusedError, match="the service stops"):
        asyncio.run(upload(whole[:1], end=True))
    assert not service.busy


def test_none_of_those_that_wait_begins_after_the_end(reference: Any) -> None:
    """Also where its turn comes in the moment in which the service ends."""
    service = Service(reference, Limits(concurrency=1))
    began = []

    async def end_as_the_first_is_done() -> list[Any]:
        gone = asyncio.Event()

        def first() -> None:
            time.sleep(0.3)

        async def waits(number: int) -> None:
            await service.work(lambda: began.append(number))

        running = asyncio.ensure_future(service.work(first))
        await asyncio.sleep(0.1)
        waiting = [asyncio.ensure_future(waits(number)) for number in range(3)]
        running.add_done_callback(lambda _: gone.set())
        await asyncio.sleep(0.05)
        service._slots.release()  # the second's turn has come ...
        service.end()  # ... and nobody has looked yet
        await gone.wait()
        return await asyncio.gather(*waiting, return_exceptions=True)

    answers = asyncio.run(end_as_the_first_is_done())
    assert [(answer.status, answer.message) for answer in answers] == [(503, "the service stops: try again in a moment")] * 3
    assert began == []
