"""Nothing of the machine can be read through the service, and no page of another site can use it."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import Service
from web_bundles import encoded, photo

from img2img.web import files
from img2img.web.files import PictureFolder

UPLOAD, JOIN, FILE = "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file="


def upload(http: httpx.Client, blob: bytes) -> httpx.Response:
    return http.post(UPLOAD, files={"files": ("photo.png", blob)})


def run_function(http: httpx.Client) -> int:
    """The number that Gradio gave to the function that runs a task."""
    numbers = [f["id"] for f in http.get("/config").json()["dependencies"] if len(f["inputs"]) == 3]
    assert len(numbers) == 1
    return int(numbers[0])


def join(http: httpx.Client, picture: Any) -> httpx.Response:
    data = {"data": [picture, "colour", None], "fn_index": run_function(http), "session_hash": "abc", "trigger_id": None}
    return http.post(JOIN, json=data)


def outcome(http: httpx.Client) -> dict[str, Any]:
    """How the function that was joined ended."""
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event["msg"] == "process_completed":
                    return dict(event)
    raise AssertionError("no end")


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


# ---------------------------------------------------------------------- files


def test_an_uploaded_picture_comes_back_and_runs(http: httpx.Client) -> None:
    blob = encoded(photo())
    (path,) = upload(http, blob).json()
    answer = http.get(FILE + path)
    assert (answer.content, answer.headers["content-type"]) == (blob, "image/png")
    assert answer.headers["cache-control"] == "private, no-store"
    # What a request says of a URL is dropped: this one is nobody's.
    assert join(http, file_data(path, url="http://192.0.2.1/photo.png")).status_code == 200
    assert outcome(http)["success"]


def paths(bundle: Path, folder: Path) -> list[str]:
    """Files that are there, named in all the ways one could think of."""
    weights = bundle / "backbone.safetensors"
    assert weights.is_file()
    return [
        str(weights), str(bundle / "bundle.json"), "/etc/passwd", "etc/passwd", "pyproject.toml", __file__,
        f"{folder}/../../etc/passwd", f"{folder}/../{bundle.relative_to('/')}/bundle.json", str(folder), f"{folder}/", "",
        ".", "~", f"{folder}/..%2f..%2fetc%2fpasswd", "/proc/self/environ", "/proc/self/cwd/pyproject.toml", "file:///etc/passwd",
        "//etc/passwd", "/etc/passwd\0.png", "http://127.0.0.1/", "https://example.com/a.png", "a" * 5000,
    ]  # fmt: skip


def test_no_file_of_the_machine_is_served(http: httpx.Client, bundle: Path) -> None:
    (path,) = upload(http, encoded(photo())).json()
    folder = Path(path).parents[1]
    everywhere = ("/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/", "/gradio_api/proxy=")
    asked = [FILE + name for name in paths(bundle, folder)]
    asked += [prefix + name for prefix in everywhere for name in paths(bundle, folder)[:3]]
    for target in asked:
        for quoted in (target.replace("\0", "%00"), quote(target, safe="/")):
            answer = http.get(quoted)
            assert answer.status_code in (403, 404), (quoted, answer.status_code)
            assert len(answer.content) < 6000
            assert b"root:" not in answer.content
    # A client that sends its path as it is, dots and all.
    for target in ("/static/../../../../../../../../../etc/passwd", f"{FILE}{folder}/../../etc/passwd", "/../../etc/passwd"):
        with socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=20) as raw:
            raw.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 404"), target
        assert b"root:" not in answer


def test_no_file_of_the_machine_is_run_on(http: httpx.Client, bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(encoded(photo()))
    (path,) = upload(http, encoded(photo())).json()
    for name in [str(mine), *paths(bundle, Path(path).parents[1])]:
        answer = join(http, file_data(name))
        assert answer.status_code == 403, name
        assert answer.json() == {"error": "the picture is not here, or not any more: choose it again"}
    data_url = "data:image/png;base64,iVBORw0KGgo="
    for picture in (
        {"url": data_url},
        {"path": None, "url": data_url},
        [file_data(str(mine))],
        {"a": {"b": file_data(str(mine))}},
    ):
        assert join(http, picture).status_code == 403
    assert http.post(JOIN, content=b"[" * 100_000).status_code == 422
    assert http.post(JOIN, content=bytes(300_000)).status_code == 413


def test_what_the_page_does_not_need_is_not_there(http: httpx.Client) -> None:
    get = ["docs", "redoc", "openapi.json", "gradio_api/openapi.json", "gradio_api/info", "gradio_api/runs", "monitoring",
           "monitoring/summary", "gradio_api/vibe-code", "gradio_api/dev/reload", "gradio_api/token", "login", "logout",
           "pwa_icon", "gradio_api/deep_link", "gradio_api/custom_component/x/client/y/z", "gradio_api/call/run/1",
           "gradio_api/startup-events", "gradio_api/stream/a/b/c/playlist.m3u8", "robots.txt"]  # fmt: skip
    post = ["gradio_api/run/run", "gradio_api/api/predict", "gradio_api/call/run", "gradio_api/call/v2/run", "login",
            "gradio_api/vibe-edit", "gradio_api/process_recording", "gradio_api/component_server"]  # fmt: skip
    assert {path: http.get(f"/{path}").status_code for path in get} == dict.fromkeys(get, 404)
    assert {path: http.post(f"/{path}", json={}).status_code for path in post} == dict.fromkeys(post, 404)
    assert http.request("DELETE", "/").status_code == 404
    # What the queue bounds does not run past the queue.
    direct = {"data": [None, "colour", None], "fn_index": run_function(http), "session_hash": "abc"}
    assert http.post("/gradio_api/run/predict", json=direct).status_code == 404
    assert http.options("/", headers={"Access-Control-Request-Method": "POST"}).status_code == 404


def test_uploads_are_pictures(http: httpx.Client) -> None:
    for blob, status in ((b"<script>alert(1)</script>", 415), (encoded(photo(300, 300))[:5000], 422), (b"", 422)):
        answer = upload(http, blob)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/plain")
    # The name that is sent decides nothing.
    (path,) = http.post(UPLOAD, files={"files": ("../../x.html", encoded(photo()), "text/html")}).json()
    assert Path(path).name == "picture.png"


def test_the_folder_is_private_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PictureFolder(tmp_path)
    lasting = folder.add(b"a" * 10, ".png")
    folder.keep_all()
    old, new, newer = (folder.add(b"b" * 10, ".png") for _ in range(3))
    os.symlink("/etc/passwd", new.parent / "link.png")
    (new.parent / "page.html").write_text("x")
    assert folder.find(str(new)) == new
    for other in (new.parent / "link.png", new.parent / "page.html", new.parent, new.parent / "none.png"):
        assert folder.find(str(other)) is None
    (new.parent / "link.png").unlink()
    (new.parent / "page.html").unlink()
    past = time.time() - files.KEEP_SECONDS - 5
    for path in (lasting, old):
        os.utime(path, (past, past))
    os.utime(new, (time.time() - 100,) * 2)
    folder.clean()
    assert [path.exists() for path in (lasting, old, old.parent, new, newer)] == [True, False, False, True, True]
    monkeypatch.setattr(files, "KEEP_BYTES", 15)
    folder.clean()
    assert [path.exists() for path in (lasting, new, newer)] == [True, False, True]


def test_only_the_user_can_read_the_folder(http: httpx.Client) -> None:
    (path,) = upload(http, encoded(photo())).json()
    assert Path(path).parents[1].stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------------- who asks


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "192.0.2.7", "", "localhost.evil.example", "127.0.0.1.evil"]
)
def test_another_name_is_refused(http: httpx.Client, host: str) -> None:
    for path in ("/", "/api/v1/tasks", "/config"):
        answer = http.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "this service is not called" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "[::1]:7860", "LOCALHOST"])
def test_its_own_names_are_not(http: httpx.Client, host: str) -> None:
    assert http.get("/api/v1/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_foreign_page_is_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    for path in ("/api/v1/run/colour", UPLOAD, JOIN):
        answer = http.post(path, headers=headers, content=encoded(photo()))
        assert answer.status_code == 403
        assert "another site" in answer.json()["error"]


def test_the_services_own_page_is_not(http: httpx.Client, service: Service) -> None:
    answer = http.post(
        "/api/v1/run/colour", headers={"Origin": service.url, "Sec-Fetch-Site": "same-origin"}, content=encoded(photo())
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/v1/health", "/config", "/nothing", "/theme.css"])
def test_headers_keep_the_page_at_home(http: httpx.Client, path: str) -> None:
    headers = http.get(path, headers={"Origin": "http://localhost"}).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe-eval" not in headers["content-security-policy"]
    assert not any("//" in part or "*" in part for part in policy.values())
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control-")]
    assert "server" not in headers
