"""A service in a process of its own, and what its answers are read with."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).parents[2]
API = "/api/v1"


def opened(answer: httpx.Response) -> Image.Image:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text[:300]
    return Image.open(io.BytesIO(answer.content))


def error(answer: httpx.Response, status: int) -> str:
    """The one thing that a refusal has."""
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert list(content) == ["error"]
    said = content["error"]
    assert "Traceback" not in said
    assert "/tmp" not in said
    return str(said)


class Slow:
    """A model whose images wait until they may go on."""

    def __init__(self, model: Any) -> None:
        self._model, self.go, self.running = model, threading.Event(), threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.running.release()
        assert self.go.wait(60)
        return self._model.run(*arguments, **options)


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
    for name in [name for name in environment if name.startswith("HF_")]:
        del environment[name]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(bundle), str(talk), json.dumps(limits)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http://127.0.0.1:" in line, line + process.stdout.read()
    return Service(line.split(" at ")[1].split(" ")[0], talk, temporary, process)
