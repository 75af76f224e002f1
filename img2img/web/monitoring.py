"""What runs a service asks it: `GET /healthz`, `/readyz`, and `/metrics` in the text format of Prometheus.

The format is a line a value, so it is written here: counters and two histograms are no reason for a further package. Labels have
names of tasks that there are and of routes that there are, and never what a client sent, so their number is bounded.
"""

import bisect
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.version import __version__
from img2img.web.api import PREFIX
from img2img.web.limits import RefusedError
from img2img.web.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""The upper bounds of the histogram of latencies."""

SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Those of the histograms of batches."""

_ROUTES = ("run", "preview", "tasks", "samples", "masks", "health", "teach", "openapi.json")

Labels = Mapping[str, str]


class Requests:
    """Counts of the requests that were answered, by route, task and status, and how long those took that ran a task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.buckets = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0

    def add(self, route: str, task: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self.counts[route, task, status] += 1
            if route == "run" and status == 200:
                self.buckets[bisect.bisect_left(SECONDS, seconds)] += 1
                self.seconds += seconds


class MonitoringMiddleware:
    """Counts every request, also those that are refused.

    Args:
        app: what answers.
        service: has the names of the tasks.
        requests: the counts.
    """

    def __init__(self, app: ASGIApp, *, service: Service, requests: Requests) -> None:
        self.app, self._service, self._requests = app, service, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499

        async def forward(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, forward)
        except BaseException:
            status = 500
            raise
        finally:
            self._requests.add(*self._named(scope["path"]), status, time.perf_counter() - began)

    def _named(self, path: str) -> tuple[str, str]:
        """A route and a task, each of those that there are, or "other" and ""."""
        if not path.startswith(f"{PREFIX}/"):
            return ("page" if path == "/" else "other"), ""
        route, _, name = path.removeprefix(f"{PREFIX}/").partition("/")
        return (route if route in _ROUTES else "other"), (name if route == "run" and name in self._service.tasks.infos else "")


def monitoring_routes(service: Service, requests: Requests) -> APIRouter:
    """`/healthz`, `/readyz` and `/metrics`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process answers, which it does until it ends."""
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    async def readyz() -> PlainTextResponse:
        """New requests are taken; 503 while the service stops, so that they are sent elsewhere."""
        if service.stopping or not service.tasks.infos:
            raise RefusedError(503, "the service stops" if service.stopping else "there are no tasks")
        return PlainTextResponse("ready\n")

    @router.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse("".join(_lines(service, requests)), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _lines(service: Service, requests: Requests) -> Iterator[str]:
    model, batches = service.model, service.model.batches
    yield from _family("img2img_info", "gauge", "The version that runs.", [({"version": __version__}, 1)])
    answered = [
        ({"route": route, "task": task, "status": str(status)}, count)
        for (route, task, status), count in sorted(requests.counts.items())
    ]
    yield from _family("img2img_requests_total", "counter", "Requests by route, task and status.", answered)
    yield from _histogram(
        "img2img_run_seconds", "Seconds of requests that run a task, from the first byte to the answer.",
        SECONDS, requests.buckets, requests.seconds,
    )  # fmt: skip
    kept = model.weights_kept()
    values: list[tuple[str, str, str, float]] = [
        ("img2img_running", "gauge", "Images that run now.", service.running),
        ("img2img_waiting", "gauge", "Requests that arrive or wait.", service.waiting),
        ("img2img_tasks", "gauge", "Tasks that are served.", len(service.tasks.infos)),
        ("img2img_image_memory_bytes", "gauge", "Memory that running images may take by their size.", service.memory.taken),
        ("img2img_image_memory_limit_bytes", "gauge", "The bound on it.", service.memory.limit),
        ("img2img_weights_hits_total", "counter", "How often a task's weights were kept.", kept["hits"]),
        ("img2img_weights_misses_total", "counter", "How often they had to be computed.", kept["misses"]),
        ("img2img_weights_bytes", "gauge", "Bytes of the weights that are kept.", kept["bytes"]),
        ("img2img_task_bytes", "gauge", "Bytes of tasks that were read and can be dropped.", model.network.loaded_bytes()),
    ]
    if (resident := _resident_bytes()) is not None:
        values.append(("process_resident_memory_bytes", "gauge", "Memory of the process.", resident))
    if model.device.type == "cuda":
        import torch

        held = torch.cuda.memory_allocated(model.device)
        values.append(("img2img_accelerator_memory_bytes", "gauge", "Memory of tensors on the accelerator.", held))
    if batches is not None:
        counts = batches.counts
        values += [
            ("img2img_batch_waiting", "gauge", "Inputs that wait for a batch.", batches.waiting),
            ("img2img_batch_inputs_total", "counter", "Inputs that came.", counts.calls),
            ("img2img_batch_wait_seconds_total", "counter", "Seconds that inputs waited.", counts.wait_seconds),
        ]
        for name, help, found in (
            ("img2img_batch_samples", "Samples of a batch.", dict(counts.samples)),
            ("img2img_batch_tasks", "Different tasks of a batch.", dict(counts.tasks)),
        ):
            buckets = [0] * (len(SAMPLES) + 1)
            for size, count in found.items():
                buckets[bisect.bisect_left(SAMPLES, size)] += count
            yield from _histogram(name, help, SAMPLES, buckets, sum(size * count for size, count in found.items()))
    for name, kind, help, value in values:
        yield from _family(name, kind, help, [({}, value)])


def _family(name: str, kind: str, help: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# HELP {name} {help}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _sample(name: str, labels: Labels, value: float) -> str:
    written = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{written}}} {value}\n" if written else f"{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram(name: str, help: str, bounds: Iterable[float], buckets: list[int], total: float) -> Iterator[str]:
    yield f"# HELP {name} {help}\n# TYPE {name} histogram\n"
    for bound, count in zip((*map(str, bounds), "+Inf"), itertools.accumulate(buckets), strict=True):
        yield _sample(f"{name}_bucket", {"le": bound}, count)
    yield f"{name}_sum {total}\n{name}_count {sum(buckets)}\n"


def _resident_bytes() -> int | None:
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (ImportError, OSError):  # another system than Linux
        return None
