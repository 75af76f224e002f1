"""The page: one HTML, one style and one script file, a client of the API like any other; nothing is made for a request."""

import hashlib
from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
}
"""What there is, by path: no path of a request ever becomes a path of a file."""

_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#1d2433"/>'
    b'<path d="M6 24l7-9 5 6 3-4 5 7z" fill="#fff"/><path d="M16 4v24" stroke="#f2a33c" stroke-width="2.5"/>'
    b'<circle cx="16" cy="10" r="3.4" fill="#f2a33c"/></svg>'
)


def page_routes() -> APIRouter:
    """The files of the page, read once."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in _FILES.items():
        content = (resources.files("img2img.web") / "static" / name).read_bytes()
        router.add_api_route(path, _answer(content, kind), methods=["GET", "HEAD"])
    router.add_api_route("/icon.svg", _answer(_ICON, "image/svg+xml"), methods=["GET", "HEAD"])
    return router


def _answer(content: bytes, kind: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}  # a browser asks each time whether it has the newest

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
