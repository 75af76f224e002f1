"""Nothing of the machine can be read through the service, and no page of another site can use it."""

import html
import json
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from web_bundles import encoded, photo
from web_service import Service

from img2img.web import temporary_images
from img2img.web.limits import RefusedError
from img2img.web.temporary_images import TemporaryImages

UPLOAD, RUN, FILE = "/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/file="


def upload(http: httpx.Client, blob: bytes) -> httpx.Response:
    return http.post(UPLOAD, files={"files": ("photo.png", blob)})


def run_function(http: httpx.Client) -> int:
    """The number that Gradio gave to the function that runs a task."""
    numbers = [f["id"] for f in http.get("/config").json()["dependencies"] if len(f["inputs"]) == 3]
    assert len(numbers) == 1
    return int(numbers[0])


def run(http: httpx.Client, image: Any) -> httpx.Response:
    return http.post(RUN, json={"data": [image, "colour", "colours"], "fn_index": run_function(http), "session_hash": "abc"})


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


# ---------------------------------------------------------------------- files


def test_an_uploaded_image_comes_back_and_runs(http: httpx.Client) -> None:
    blob = encoded(photo())
    (path,) = upload(http, blob).json()
    answer = http.get(FILE + path)
    assert (answer.content, answer.headers["content-type"]) == (blob, "image/png")
    assert answer.headers["cache-control"] == "private, no-store"
    # What a request says of a URL is dropped: this one is nobody's.
    answer = run(http, file_data(path, url="http://192.0.2.1/photo.png"))
    assert "pixels in" in html.unescape(answer.json()["data"][3])


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


def test_no_file_of_the_machine_is_served(http: httpx.Client, service: Service, bundle: Path) -> None:
    (path,) = upload(http, encoded(photo())).json()
    folder = service.file(path).parents[1]
    assert folder.is_dir()
    assert http.get(f"{FILE}{service.file(path)}").status_code == 404  # by its public name alone
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


def test_no_file_of_the_machine_is_run_on(http: httpx.Client, service: Service, bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(encoded(photo()))
    (path,) = upload(http, encoded(photo())).json()
    for name in [str(mine), str(service.file(path)), "/images/../../mine.png", *paths(bundle, service.file(path).parents[1])]:
        answer = run(http, file_data(name))
        assert answer.status_code == 403, name
        assert answer.json() == {"error": "the image is not here, or not any more: choose it again"}
    data_url = "data:image/png;base64,iVBORw0KGgo="
    for image in (
        {"url": data_url},
        {"path": None, "url": data_url},
        [file_data(str(mine))],
        {"a": {"b": file_data(str(mine))}},
    ):
        assert run(http, image).status_code == 422


ODD: list[Any] = [
    None,
    True,
    5,
    -1,
    1.5,
    10**30,
    "x",
    "\ud800",
    "y" * 60_000,
    [],
    [1],
    {},
    {"a": 1},
    {"path": 5},
    {"path": ["x"]},
]
RAW = [
    b"", b"null", b"5", b"[]", b"{}", b'"x"', b"NaN", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 60_000, b'{"data": NaN}',
    b'{"data": [1e999]}', b'{"data": [%s]}' % (b"9" * 5000), b'{"data": %s%s}' % (b"[" * 500, b"]" * 500),
    b'{"a":' * 900 + b"1" + b"}" * 900, bytes(300_000),
]  # fmt: skip


def test_wrong_json_is_refused_with_one_short_message(http: httpx.Client) -> None:
    number = run_function(http)
    whole: dict[str, Any] = {"data": [None, "colour", "colours"], "fn_index": number, "session_hash": "abc"}
    bodies = list(RAW)
    for key in ("data", "fn_index"):
        bodies += [json.dumps({**whole, key: value}).encode() for value in ODD if key == "data" or value != number]
    for place in range(3):
        for odd in ODD[1:] if place == 0 else ODD:
            data = list(whole["data"])
            data[place] = odd
            bodies.append(json.dumps({**whole, "data": data}).encode())
    for body in bodies:
        answer = http.post(RUN, content=body)
        assert answer.status_code in (403, 413, 422), (body[:80], answer.status_code)
        assert list(answer.json()) == ["error"]
        assert len(answer.content) < 300
    # What a function does not take is not handed on.
    for more in ({"event_id": [], "batched": {}, "trigger_id": "x", "oauth_token": 5, "event_data": [[1]]}, {"session_hash": {}}):
        assert http.post(RUN, json={**whole, **more}).status_code == 200


def test_the_page_tells_nothing_of_the_machine(http: httpx.Client, service: Service, bundle: Path) -> None:
    import gradio

    (path,) = upload(http, encoded(photo())).json()
    answers = [http.get("/"), http.get("/config"), run(http, file_data(path)), http.get("/api/v1/tasks"), http.get("/theme.css")]
    for answer in answers:
        assert answer.status_code == 200
        for told in (str(service.temporary), "img2img-images", str(bundle), str(Path.home()), gradio.__version__):
            assert told not in answer.text, answer.url
    assert "/images/" in answers[1].text
    assert "/images/" in answers[2].text


def test_what_the_page_does_not_need_is_not_there(http: httpx.Client) -> None:
    get = ["docs", "redoc", "openapi.json", "gradio_api/openapi.json", "gradio_api/info", "gradio_api/runs", "monitoring",
           "monitoring/summary", "gradio_api/vibe-code", "gradio_api/dev/reload", "gradio_api/token", "login", "logout",
           "pwa_icon", "gradio_api/deep_link", "gradio_api/custom_component/x/client/y/z", "gradio_api/call/run/1",
           "gradio_api/startup-events", "gradio_api/stream/a/b/c/playlist.m3u8", "robots.txt", "gradio_api/heartbeat/abc",
           "gradio_api/queue/data?session_hash=abc", "gradio_api/queue/status"]  # fmt: skip
    post = ["gradio_api/run/run", "gradio_api/api/predict", "gradio_api/call/run", "gradio_api/call/v2/run", "login",
            "gradio_api/vibe-edit", "gradio_api/process_recording", "gradio_api/component_server", "gradio_api/queue/join",
            "gradio_api/cancel", "gradio_api/reset", "gradio_api/run/predict/"]  # fmt: skip
    assert {path: http.get(f"/{path}").status_code for path in get} == dict.fromkeys(get, 404)
    assert {path: http.post(f"/{path}", json={}).status_code for path in post} == dict.fromkeys(post, 404)
    assert http.request("DELETE", "/").status_code == 404
    assert http.options("/", headers={"Access-Control-Request-Method": "POST"}).status_code == 404


def test_uploads_are_images(http: httpx.Client) -> None:
    for blob, status in ((b"<script>alert(1)</script>", 415), (encoded(photo(300, 300))[:5000], 422), (b"", 422)):
        answer = upload(http, blob)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/plain")
    # The name that is sent decides nothing.
    (path,) = http.post(UPLOAD, files={"files": ("../../x.html", encoded(photo()), "text/html")}).json()
    assert Path(path).name == "image.png"


def test_the_folder_is_private_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TemporaryImages(tmp_path)
    lasting = folder.add(b"a" * 10, ".png")
    folder.keep_all()
    old, new, newer = (folder.add(b"b" * 10, ".png") for _ in range(3))
    os.symlink("/etc/passwd", new.parent / "link.png")
    (new.parent / "page.html").write_text("x")
    assert folder.find(folder.public(new)) == new
    assert folder.find(str(new)) is None
    for other in (new.parent / "link.png", new.parent / "page.html", new.parent, new.parent / "none.png"):
        assert folder.find(folder.public(other)) is None
    (new.parent / "link.png").unlink()
    (new.parent / "page.html").unlink()
    past = time.time() - temporary_images.KEEP_SECONDS - 5
    for path in (lasting, old):
        os.utime(path, (past, past))
    os.utime(new, (time.time() - 100,) * 2)
    folder.clean()
    assert [path.exists() for path in (lasting, old, old.parent, new, newer)] == [True, False, False, True, True]
    monkeypatch.setattr(temporary_images, "KEEP_BYTES", 25)
    folder.clean()
    assert [path.exists() for path in (lasting, new, newer)] == [True, False, True]


def test_the_folder_never_holds_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_images, "KEEP_BYTES", 1000)
    folder = TemporaryImages(tmp_path)

    def held() -> int:
        return sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())

    kept = []
    for _ in range(20):
        kept.append(folder.add(bytes(300), ".png"))
        assert held() <= 1000
    assert [path.exists() for path in kept] == [False] * 17 + [True] * 3
    assert len(list(tmp_path.iterdir())) == 3
    folder.keep_all()  # of what may not go, none goes
    for size in (101, 1001):
        with pytest.raises(RefusedError, match="no room") as refused:
            folder.add(bytes(size), ".png")
        assert refused.value.status == 503
    assert held() == 900
    assert len(list(tmp_path.iterdir())) == 3


def test_only_the_user_can_read_the_folder(http: httpx.Client, service: Service) -> None:
    (path,) = upload(http, encoded(photo())).json()
    assert service.file(path).parents[1].stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------------- who asks


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:7860", "192.0.2.7", "", "localhost.evil.example", "127.0.0.1.evil", "evil@127.0.0.1",
        "evil:x@127.0.0.1:80", "localhost#x", "localhost?x", "localhost/../x", "localhost/", "localhost.", "127.0.0.1.",
        "localhost:", "localhost:0", "localhost:99999", "localhost:+80", "localhost:80:80", "localhost:x", "[::1", "::1",
        "[::1]x", "[127.0.0.1]", "[localhost]", "localhost localhost", "localhost,evil.example", "http://localhost",
    ],
)  # fmt: skip
def test_another_name_is_refused(http: httpx.Client, host: str) -> None:
    for path in ("/", "/api/v1/tasks", "/config"):
        answer = http.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "this service is not called" in answer.json()["error"]


def test_a_name_given_twice_is_refused(http: httpx.Client, service: Service) -> None:
    port = int(service.url.rsplit(":")[-1])
    for hosts in ("Host: localhost\r\nHost: evil.example", "Host: localhost\r\nHost: localhost", "X-Host: localhost"):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            raw.sendall(f"GET /api/v1/health HTTP/1.1\r\n{hosts}\r\nConnection: close\r\n\r\n".encode())
            assert raw.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 403"), hosts


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "[::1]:7860", "LOCALHOST", "[0:0:0:0:0:0:0:1]"])
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
        [("Origin", "{url}"), ("Origin", "https://evil.example")],
        [("Origin", "{url}"), ("Origin", "{url}")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
        {"Origin": "{url}/"},
        {"Origin": "{url}, https://evil.example"},
        {"Origin": "file:{slashes}"},
        {"Origin": "evil@{slashes}"},
        {"Origin": "http://evil@{slashes}"},
        {"Origin": "{slashes}"},
        {"Origin": ""},
    ],
)
def test_a_foreign_page_is_refused(http: httpx.Client, service: Service, headers: Any) -> None:
    pairs = headers.items() if isinstance(headers, dict) else headers
    headers = [(name, value.format(url=service.url, slashes=service.url.removeprefix("http:"))) for name, value in pairs]
    for path in ("/api/v1/run/colour", UPLOAD, RUN):
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
