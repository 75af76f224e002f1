"""Nothing of the machine can be read through the service, and no page of another site can use it."""

import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from web_bundles import encoded, photo
from web_service import ROOT

# ---------------------------------------------------------------------- files


def paths(bundle: Path) -> list[str]:
    """Files that are there, named in all the ways one could think of."""
    weights = bundle / "backbone.safetensors"
    assert weights.is_file()
    return [
        str(weights), str(bundle / "bundle.json"), "/etc/passwd", "etc/passwd", "pyproject.toml", __file__, "..", ".", "~",
        "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/proc/self/environ", "file:///etc/passwd", "//etc/passwd",
        "/etc/passwd\0.png", "http://127.0.0.1/", "a" * 5000, "../page.py", "server.py", "static/index.html",
    ]  # fmt: skip


def test_no_file_of_the_machine_is_served(http: httpx.Client, bundle: Path) -> None:
    prefixes = ("/", "/static/", "/api/v1/samples/", "/api/v1/masks/", "/style.css/", "/file=")
    for target in (prefix + name for prefix in prefixes for name in paths(bundle) if name.strip("./")):
        answer = http.get(quote(target, safe="/%"))
        assert answer.status_code in (403, 404), (target[:80], answer.status_code)
        assert len(answer.content) < 6000
        assert b"root:" not in answer.content
    # A client that sends its path as it is, dots and all.
    for target in (
        "/static/../../../../../../../../../etc/passwd",
        "/../../etc/passwd",
        "/api/v1/samples/../../../../etc/passwd",
    ):
        with socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=20) as raw:
            raw.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer_bytes = b"".join(iter(lambda: raw.recv(65_536), b""))
        assert answer_bytes.startswith(b"HTTP/1.1 404"), target
        assert b"root:" not in answer_bytes


def test_the_page_is_three_files_that_load_nothing_else(http: httpx.Client, bundle: Path) -> None:
    """No other host, no inline script or style, nothing that makes HTML of a text; and the files are the same for everybody."""
    static = ROOT / "img2img" / "web" / "static"
    for path, name in (("/", "index.html"), ("/style.css", "style.css"), ("/script.js", "script.js")):
        answer = http.get(path)
        assert answer.content == (static / name).read_bytes()
        assert http.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        assert str(bundle) not in answer.text
        urls = set(re.findall(r"https?://[^\s\"'<>)]+", answer.text))
        assert urls <= {"http://www.w3.org/2000/svg"}, name
    html, script = (static / "index.html").read_text(), (static / "script.js").read_text()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", html)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style", script
    )


def test_what_the_page_does_not_need_is_not_there(http: httpx.Client) -> None:
    get = ["docs", "redoc", "openapi.json", "config", "robots.txt", "favicon.ico", "static/", "api/v1/teach", "api/v1/teach/file",
           "style.css/", "api/v1/tasks/"]  # fmt: skip
    post = ["", "script.js", "api/v1/teach", "api/v1/teach/start", "api/v1/teach/zip", "api/v1/samples/coffee"]
    assert {path: http.get(f"/{path}").status_code for path in get} == dict.fromkeys(get, 404)
    assert {http.post(f"/{path}", json={}).status_code for path in post} <= {404, 405}
    answer = http.get("/api/v1/run/colour")
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (405, "/api/v1/run/colour does not take GET")
    assert http.post("/api/v1/tasks", json={}).status_code == 403, "without a token"
    assert http.put("/api/v1/teach/files/inputs/a.png", content=encoded(photo())).status_code in (404, 405)
    assert http.delete("/api/v1/teach").status_code in (404, 405)
    assert http.options("/", headers={"Access-Control-Request-Method": "POST"}).status_code in (404, 405)


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
    for path in ("/", "/api/v1/tasks", "/script.js"):
        answer = http.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "this service is not called" in answer.json()["error"]


def test_a_name_given_twice_is_refused(http: httpx.Client, url: str) -> None:
    port = int(url.rsplit(":")[-1])
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
def test_a_foreign_page_is_refused(http: httpx.Client, url: str, headers: Any) -> None:
    pairs = headers.items() if isinstance(headers, dict) else headers
    headers = [(name, value.format(url=url, slashes=url.removeprefix("http:"))) for name, value in pairs]
    for path in ("/api/v1/run/colour", "/api/v1/preview", "/api/v1/nothing"):
        answer = http.post(path, headers=headers, content=encoded(photo()))
        assert answer.status_code == 403
        assert "another site" in answer.json()["error"]


def test_the_services_own_page_is_not(http: httpx.Client, url: str) -> None:
    answer = http.post("/api/v1/run/colour", headers={"Origin": url, "Sec-Fetch-Site": "same-origin"}, content=encoded(photo()))
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/v1/health", "/nothing", "/style.css", "/api/v1/masks/density"])
def test_headers_keep_the_page_at_home(http: httpx.Client, path: str) -> None:
    headers = http.get(path, headers={"Origin": "http://localhost"}).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy.pop("img-src") == "'self' blob:"
    allowed = {name: value for name, value in policy.items() if value != "'none'"}
    assert allowed.pop("require-trusted-types-for") == "'script'"
    assert allowed == dict.fromkeys(("script-src", "style-src", "connect-src"), "'self'")
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} < policy.keys()
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control-")]
    assert "server" not in headers
