"""Launchers as they are: a Ray cluster of two nodes of which parts are killed, submitit's local executor, a server for S3."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from img2img.launch.jobs import jobs_of
from img2img.launch.scheduler import check_finished, run_jobs
from img2img.training.config import read_experiment
from img2img.training.config.launcher import LauncherOptions, RayOptions, SlurmOptions
from img2img.training.sequence import SequenceRunner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Config = dict[str, Any]
STEPS, EVERY = 120, 20
"""Of each training, and between two of its checkpoints."""
MIDDLE = 5
"""Steps after a checkpoint, and before the next, between which a training is killed: as many at least are done again."""
TOTAL = 2 * STEPS
PATIENCE = 1200.0
"""Seconds to wait for something, on whatever busy machine."""

# Each step takes a while, and leaves a line: which process did it.
SLOW = """
import os, time, torch
original = torch.optim.Adam.step
def step(self, *args, **kwargs):
    time.sleep(0.1)
    with open(os.path.join({folder!r}, str(os.getpid())), "a") as file:
        file.write("1")
    return original(self, *args, **kwargs)
torch.optim.Adam.step = step
"""


def small(config: Config, out: str) -> Config:
    """Two tasks on a tiny random network, which can be learned at once."""
    config["backbone"]["mode"] = "random"
    config["sequence"] = ["colour", "edges"]
    config["train"] |= {"steps": STEPS, "checkpoint_every": EVERY, "log_every": 5}
    config["train"]["validation"] = {"every": STEPS // 2, "precise_bn_batches": 2}
    return config | {"out": out, "device": {"accelerator": "cpu", "threads": 1}, "evaluation": {"check_images": 1, "panels": 1}}


@pytest.fixture
def slowly(config_in: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """`slowly(out)`: an experiment whose two tasks take some seconds each."""
    (tmp_path / "steps").mkdir()
    module = tmp_path / f"slow_{tmp_path.name}.py"  # of its own name, since a process keeps the first of a name
    module.write_text(SLOW.format(folder=str(tmp_path / "steps")))
    return lambda out: small(config_in(tmp_path), out) | {"imports": [str(module)]}


@pytest.fixture(scope="module")
def expected(config_in: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the bundle that one process learns."""
    folder = tmp_path_factory.mktemp("alone")
    SequenceRunner(read_experiment(small(config_in(folder), str(folder)))).run()
    return files(folder / "bundle")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def steps_done(tmp_path: Path) -> int:
    """Optimiser steps of all processes together."""
    return sum(path.stat().st_size for path in (tmp_path / "steps").iterdir())


def launched(config: Config, options: LauncherOptions) -> None:
    jobs = jobs_of(config)
    check_finished(run_jobs(jobs, options), jobs)


class Watching(threading.Thread):
    """Does something about jobs while they run; what it raises is raised by `ended`."""

    def __init__(self, run: Path, act: Callable[["Watching"], None]) -> None:
        super().__init__(daemon=True)
        self._run, self._act = run, act
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._act(self)
        except BaseException as error:
            self._error = error

    def ended(self) -> None:
        self.join(1)
        assert not self.is_alive(), "what it waited for did not happen"
        if self._error is not None:
            raise self._error

    def stopped(self, where: Callable[[int], bool] = lambda process: True, while_runs: Any = None) -> int:
        """A process that learns a task and is held in the middle between two checkpoints, to be killed there.

        What the job says of itself does not tell the middle: it may be written just when a checkpoint is. The steps of the
        process do, which are counted as they are done; and a process that is held does no more of them meanwhile.
        """
        steps, until = self._run.parent / "steps", time.monotonic() + PATIENCE
        while time.monotonic() < until and (while_runs is None or while_runs.poll() is None):
            for path in self._run.glob("jobs/*/status.json"):
                process = int(json.loads(path.read_text())["process"])
                if not (in_the_middle(steps, process) and parent(process) and where(process)):
                    continue
                os.kill(process, signal.SIGSTOP)
                while state(process) not in ("T", ""):
                    time.sleep(0.01)
                if in_the_middle(steps, process) and parent(process):
                    return process
                os.kill(process, signal.SIGCONT)
            time.sleep(0.05)
        raise AssertionError("no training came to the middle between two checkpoints")


def in_the_middle(steps: Path, process: int) -> bool:
    """Whether a process, which began at a checkpoint, has done so many steps since its last one, and written one itself."""
    path = steps / str(process)
    done = path.stat().st_size if path.exists() else 0
    return done > EVERY and MIDDLE <= done % EVERY <= EVERY - MIDDLE


def state(process: int) -> str:
    """As `ps` shows it, such as T of one that is held; "" of one that has gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a core each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or workers get nothing where anything else runs
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_log_monitor": False, "no_monitor": True}
    made = Cluster()
    try:
        made.add_node(**options, include_dashboard=False)
        made.add_node(**options)
        made.wait_for_nodes(PATIENCE)
        yield made
    finally:
        made.shutdown()


def test_a_worker_and_a_node_are_killed_and_nothing_is_lost(
    cluster: Any, slowly: Callable[..., Config], expected: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    other = cluster.worker_nodes.copy().pop()
    (raylet,) = (each.process.pid for each in other.all_processes["raylet"])

    def act(watching: Watching) -> None:
        first = watching.stopped()
        os.kill(first, signal.SIGKILL)
        second = watching.stopped(lambda process: process != first and parent(process) == raylet)
        cluster.remove_node(other, allow_graceful=False)
        with suppress(ProcessLookupError):
            os.kill(second, signal.SIGKILL)  # a machine that has gone has no processes

    watching = Watching(run, act)
    watching.start()
    launched(slowly(str(run)), RayOptions(address=cluster.address))
    watching.ended()
    assert files(run / "bundle") == expected
    assert not (run / "jobs").exists()
    # Two kills in the middle: each repeats what came after a checkpoint, and no more.
    assert TOTAL + 2 * MIDDLE <= steps_done(tmp_path) <= TOTAL + 2 * EVERY


def test_the_launch_itself_is_killed_and_the_same_command_goes_on(
    slowly: Callable[..., Config], expected: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    run = tmp_path / "run"
    code = (
        "import json, sys\nfrom img2img.launch.jobs import jobs_of\nfrom img2img.training.config.launcher import RayOptions\n"
        "from img2img.launch.scheduler import check_finished, run_jobs\njobs = jobs_of(json.loads(sys.argv[1]))\n"
        "check_finished(run_jobs(jobs, RayOptions(parallel=2)), jobs)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(slowly(str(run)))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as launch:
        process = Watching(run, lambda watching: None).stopped(while_runs=launch)
        launch.kill()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    until = time.monotonic() + 60
    while parent(process) and time.monotonic() < until:
        time.sleep(0.2)
    assert not parent(process), "jobs end with their launch"
    assert steps_done(tmp_path) < TOTAL, "in the middle"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=PATIENCE)
    assert files(run / "bundle") == expected
    # Both jobs ended with it, wherever they were.
    assert TOTAL <= steps_done(tmp_path) <= TOTAL + 2 * EVERY


def test_slurms_jobs_by_the_local_executor_are_started_again_when_they_are_lost(
    slowly: Callable[..., Config], expected: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    run = tmp_path / "run"
    watching = Watching(run, lambda watching: os.kill(watching.stopped(), signal.SIGKILL))
    watching.start()
    launched(slowly(str(run)), SlurmOptions(cluster="local", parallel=1))
    watching.ended()
    assert files(run / "bundle") == expected
    assert TOTAL + MIDDLE <= steps_done(tmp_path) <= TOTAL + EVERY


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
                break
            except Exception:
                assert time.monotonic() < until, "the server does not answer"
                time.sleep(0.3)
        yield "s3://bucket/run"
    finally:
        server.kill()
        server.wait()


def test_a_run_in_a_bucket_goes_on_from_the_checkpoint_there(
    bucket: str, slowly: Callable[..., Config], expected: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    from img2img.launch.store import Store

    store = Store(bucket)

    def act(watching: Watching) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for name in ("colour", "edges"):
                found = store.read_json(f"jobs/{name}", "status.json")
                if isinstance(found, dict) and EVERY < found.get("step", 0) < STEPS:
                    os.kill(int(found["process"]), signal.SIGKILL)
                    return
            time.sleep(0.3)
        raise AssertionError("no job came so far")

    watching = Watching(tmp_path, act)
    watching.start()
    launched(slowly(bucket), RayOptions(parallel=2))
    watching.ended()
    with store.copy("") as folder:
        assert files(folder / "bundle") == expected
        assert (folder / "results.json").is_file()
    assert not store._files("jobs")
    assert steps_done(tmp_path) < TOTAL + STEPS - EVERY // 2, "not from its start"
