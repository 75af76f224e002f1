"""Starting and stopping the service, the examples of its guide, and clients that stall or are many."""

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner
from web_bundles import encoded, photo, same
from web_service import ROOT, start

import img2img
from img2img import InputError
from img2img.cli import app
from img2img.inference import Batching
from img2img.web import Limits, TeachOptions, build_app, security, serve
from img2img.web.server import bundle_app, listen
from img2img.web.uvicorn_server import Connection


def test_it_talks_to_nobody_and_ctrl_c_stops_it(bundle: Path, tmp_path: Path) -> None:
    """In a process of its own, whose every connection and look-up is written down; what SIGTERM does is in test_web_load.py."""
    service = start(bundle, tmp_path / "talk.txt")
    with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as http:
        for path in ("/", "/script.js", "/api/v1/tasks", "/api/v1/samples/shapes", "/api/v1/masks"):
            assert http.get(path).status_code == 200
        assert http.post("/api/v1/run/colour", files={"image": encoded(photo(700, 600))}).status_code == 200
        assert service.stop(signal.SIGINT) == (0, "")  # a connection that is kept does not hold it
    assert list(service.temporary.iterdir()) == []
    talked = service.talk.read_text(encoding="utf-8").splitlines()
    assert talked  # the address it listens at, at least
    assert [line for line in talked if "127.0.0.1" not in line] == []


def test_a_port_in_use(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} .*in use.*choose another"):
            serve(bundle, port=port)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 70_000}, "port=70000: expected 1 to 65535"),
        ({"host": "no such name"}, "host='no such name'"),
        ({"host": "192.0.2.1"}, "cannot listen at 192.0.2.1:7860"),
    ],
)
def test_wrong_addresses(bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        serve(bundle, **options)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle in"):
        serve(tmp_path, port=0)


def test_a_package_that_is_not_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"'uvicorn'.*img2img\[images,train,serve\]"):
        serve(bundle, port=0)


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"names": ["demo.example"]}])
def test_nobody_else_can_teach(bundle: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--teach with --(host|name) .*this machine alone"):
        serve(bundle, port=0, teach=TeachOptions(), **options)
    with pytest.raises(InputError, match="this machine alone"):
        build_app(img2img.load(str(bundle)), hosts=("localhost", "demo.example"), teach=TeachOptions())


def test_beyond_this_machine_any_address_and_the_names_given(reference: Any) -> None:
    from starlette.testclient import TestClient

    app = build_app(reference, hosts=("demo.example",), any_address=True)

    def status(host: str) -> int:
        return TestClient(app, base_url=f"http://{host}").get("/api/v1/health").status_code

    hosts = {"demo.example": 200, "192.0.2.7": 200, "[2001:db8::1]:80": 200, "evil.example": 403, "192.0.2.7.evil.example": 403}
    assert {host: status(host) for host in hosts} == hosts


def test_a_name_may_be_given_with_the_port_of_a_proxy(reference: Any) -> None:
    from starlette.testclient import TestClient

    app = build_app(reference, hosts=("Demo.example:8443", "[::1]:80"))
    for host in ("demo.example:8443", "demo.example", "[::1]"):
        assert TestClient(app, base_url=f"http://{host}").get("/api/v1/health").status_code == 200, host


@pytest.mark.parametrize("name", ["https://demo.example", "demo.example/page", "demo example", "demo.example:99999", ""])
def test_a_name_that_no_request_can_have_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"expected that of a host, such as demo\.example\.org"):
        serve(tmp_path, port=0, names=[name])


@pytest.mark.parametrize("option", ["--max-seconds", "--grace"])
def test_the_command_and_the_limits_have_one_least_time(option: str) -> None:
    done = CliRunner().invoke(app, ["serve", "starter", option, "0.5"])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == f"{option} 0.5: expected 1 or more seconds; correct it"


def test_without_a_number_of_images_at_once_there_are_two_batches_of_them(bundle: Path) -> None:
    def at_once(limits: Limits | None, batch: int | None) -> Any:
        app = bundle_app(bundle, host="127.0.0.1", device="cpu", limits=limits, batching=Batching(batch_max=batch))
        return app.state.service.limits.concurrency

    assert at_once(None, None) == 2
    assert at_once(Limits(queue=3), 4) == 8
    assert at_once(Limits(concurrency=5), 4) == 5


def test_a_bundle_without_tasks(tmp_path: Path) -> None:
    from web_bundles import make_bundle

    empty = make_bundle(tmp_path / "empty", {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}, {})
    with pytest.raises(InputError, match=r"the bundle in .*empty has no tasks"):
        build_app(img2img.load(str(empty), weights="merged"))


def test_ipv6(reference: Any) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        with listen("::1", 0) as listening:
            assert listening.getsockname()[0] == "::1"
    except InputError:
        pytest.skip("IPv6 is switched off")


# ---------------------------------------------------------------------- the examples of docs/guides/serve.md


@pytest.fixture
def page(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page, of this service and its tasks, in a folder with a photo."""
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(encoded(photo(), "JPEG"))
    text = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    return text.replace("http://127.0.0.1:7860", url).replace("run/landscape", "run/disks")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH")
def test_with_curl(page: str, reference: Any) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    said = [
        subprocess.run([*shlex.split(line), "-sS", "--fail", "--noproxy", "*"], check=True, capture_output=True).stdout
        for line in block.splitlines()
    ]
    assert [task["name"] for task in json.loads(said[0])["tasks"]] == list(reference.tasks)
    assert same(Image.open("coloured.png"), reference.run("colour", "photo.jpg"))
    assert same(Image.open("overlay.png"), reference.run("disks", "photo.jpg", form="overlay", side=256))
    with zipfile.ZipFile("all.zip") as archive:
        assert same(Image.open(io.BytesIO(archive.read("edges.png"))), reference.run("edges", "photo.jpg"))


def test_with_python(page: str, reference: Any) -> None:
    (block,) = [found for found in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "httpx" in found]
    names: dict[str, Any] = {}
    exec(compile(block, "serve.md", "exec"), names)
    assert same(names["labels"], reference.run("disks", "photo.jpg", form="labels"))


HEAD = "Host: localhost\r\nContent-Length: 1000\r\n"
STALLED = {
    "nothing": "",
    "half a line": "GET /api",
    "half the headers": "GET / HTTP/1.1\r\nHost: local",
    "no body for the API": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD}\r\n",
    "half a body for the API": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD}\r\nabc",
    "half a form": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
    "a refused body": f"POST /api/v1/run/colour HTTP/1.1\r\n{HEAD.replace('localhost', 'evil')}\r\n",
    "a body that nobody reads": f"GET /api/v1/health HTTP/1.1\r\n{HEAD}\r\n",
    "half of a second request": "GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
    "half a chunk": "POST /api/v1/run/colour HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Times of a second in place of ten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "head_seconds", 1.0)
        patch.setattr(security, "DRAIN_SECONDS", 1.0)
        yield


def address(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rsplit(":")[-1])


def until_closed(connection: socket.socket, *, trickle: bytes, seconds: float) -> bytes:
    """What came until the other side closed, while a byte is sent now and then."""
    until, got = time.monotonic() + seconds, b""
    connection.settimeout(0.2)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                more = connection.recv(65_536)
                if not more:
                    return got
                got += more
            connection.sendall(trickle)
        raise AssertionError(f"still open after {seconds} s, with {got[:60]!r}")
    return got


@pytest.mark.parametrize("trickle", [b"", b"a"], ids=["silent", "trickling"])
def test_a_client_that_stalls_is_let_go(quick: None, local: Callable[..., str], reference: Any, trickle: bytes) -> None:
    url = local(reference, upload_seconds=2)
    with contextlib.ExitStack() as stack:
        stalled = {}
        for name, first in STALLED.items():
            stalled[name] = stack.enter_context(socket.create_connection(address(url), timeout=20))
            stalled[name].sendall(first.encode())
        for name, connection in stalled.items():
            got = until_closed(connection, trickle=trickle if name != "nothing" else b"", seconds=30)
            expected = {"nothing": b"", "a refused body": b"403", "a body that nobody reads": b"200"}.get(name, b"408")
            assert expected in got, name
    assert httpx.get(f"{url}/api/v1/health").json()["waiting"] == 0


def test_an_answer_that_is_not_taken_is_given_up(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, upload_seconds=1)
    ask = b"GET /api/v1/samples/coffee HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address(url))
        slow.sendall(30 * ask)  # for more answers than the system holds for a client
        for _ in range(300):
            try:
                slow.sendall(ask)
            except (ConnectionResetError, BrokenPipeError):
                return
            time.sleep(0.1)
    raise AssertionError("still open after 30 s")


def test_idle_connections_make_room(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, connections=10)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address(url), timeout=20)) for _ in range(40)]
        assert httpx.get(f"{url}/api/v1/health").status_code == 200
        idle[0].settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(10) == b""  # the first of them had to go


def test_busy_connections_are_no_more_than_may_be(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, connections=4)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            busy = stack.enter_context(socket.create_connection(address(url), timeout=20))
            busy.sendall(STALLED["no body for the API"].encode())
        time.sleep(0.5)
        answer = httpx.get(f"{url}/api/v1/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "too many connections" in answer.json()["error"]
    time.sleep(0.5)
    assert httpx.get(f"{url}/api/v1/health").status_code == 200


def test_one_address_does_not_take_them_all(local: Callable[..., str], reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "_address", "192.0.2.1")
    url = local(reference, connections=100, address_connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(socket.create_connection(address(url), timeout=20))
            busy.sendall(STALLED["no body for the API"].encode())
        time.sleep(0.5)
        assert httpx.get(f"{url}/api/v1/health").status_code == 503
