"""A service in a process of its own, which writes down whom it talks to, and one in this process to be tampered with."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_bundles import class_bundle, image_bundle

import img2img

ROOT = Path(__file__).parents[2]

# Every name that is looked up and every address that is connected to goes into a file.
SERVE = """
import json, sys
talk = open(sys.argv[2], "w", buffering=1)
def hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        talk.write(f"{event} {args[1:] if event in ('socket.connect', 'socket.sendto') else args[:2]}\\n")
sys.addaudithook(hook)
from img2img.web import Limits, serve
serve(sys.argv[1], port=0, limits=Limits(**json.loads(sys.argv[3])))
"""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_bundle(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_bundle(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="session")
def reference(bundle: Path) -> Any:
    """The bundle as Python runs it, on weights that are not merged."""
    return img2img.load(str(bundle))


@dataclass(frozen=True)
class Service:
    """A service that runs.

    Attributes:
        url: without a slash at its end.
        talk: the file with what it looked up and connected to.
        temporary: its folder for temporary files.
        process: its process.
    """

    url: str
    talk: Path
    temporary: Path
    process: subprocess.Popen[str]

    def file(self, name: str) -> Path:
        """Where the image of a public name lies."""
        (folder,) = self.temporary.glob("img2img-served-*")
        return folder / name.removeprefix("/images/")

    def stop(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Ctrl-C, or another signal: the exit code, and what it still said."""
        self.process.send_signal(how)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said


def start(bundle: Path, talk: Path, more: Mapping[str, str] = {}, **limits: Any) -> Service:
    """A service of a bundle within limits; `more` goes into its environment."""
    temporary = talk.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), **more}
    for name in [name for name in environment if name.startswith(("GRADIO_", "HF_"))]:
        del environment[name]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(bundle), str(talk), json.dumps(limits)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http://127.0.0.1:" in line, line + process.stdout.read()
    return Service(line.split(" at ")[1].split(" ")[0], talk, temporary, process)


@pytest.fixture(scope="session")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start(bundle, tmp_path_factory.mktemp("talk") / "talk.txt")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def local() -> Iterator[Callable[..., str]]:
    """`local(model, **limits)`: the URL of a service in this process."""
    from img2img.web import Limits, build_app
    from img2img.web.server import listen
    from img2img.web.shutdown import uvicorn_server

    with contextlib.ExitStack() as stack:

        def run(model: Any, **limits: Any) -> str:
            app = build_app(model, Limits(**limits))
            listening = stack.enter_context(listen("127.0.0.1", 0))
            server = uvicorn_server(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(20)

            stack.callback(stop)
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield run
