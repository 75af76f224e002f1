"""What of Gradio can be reached: what the page needs, and no more.

Gradio answers dozens of paths, some of which read files, fetch URLs or run code, and it checks the files that a request names
only in applications that it started itself. Here everything that is not listed is not there, files are served by `uploads`, and
the one request that does something, to run a function of the page, is read and written anew: Gradio meets no value that its page
does not send. What it answers names no folder of the machine.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import anyio
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.web.limits import RefusedError
from img2img.web.security import error_body
from img2img.web.temporary_images import URL_PREFIX, TemporaryImages

MAX_JSON_BYTES = 65_536
JSON_SECONDS = 10.0
MAX_PATH_LENGTH = 200
"""Characters of a path; a file's name of more than 255 is an error of the system."""

_GET = re.compile(r"/|/config|/theme\.css|/manifest\.json|/favicon\.ico|/(assets|static)/[\w./@~-]+|/gradio_api/app_id")
_RUN = "/gradio_api/run/predict"
_REDACTED = re.compile(r"/|/config|" + re.escape(_RUN))
"""The paths whose answers may name files."""

Inputs = Mapping[int, Sequence[frozenset[str] | None]]
"""The page's functions by number: of each input what it may be, None for an image."""


class GradioAllowlist:
    """Lets through to Gradio what the page needs.

    Args:
        app: the application with Gradio in it.
        service_paths: matches the paths that the service answers itself.
        folder: where images are.
        inputs: of the page's functions.
    """

    def __init__(self, app: ASGIApp, *, service_paths: re.Pattern[str], folder: TemporaryImages, inputs: Inputs) -> None:
        self.app, self._service_paths, self._folder, self._inputs = app, service_paths, folder, inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or raise `RefusedError` for `SecurityMiddleware` to answer."""
        path = scope["path"] if scope["type"] == "http" else ""
        if not path or self._service_paths.match(path):
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        known = _GET.fullmatch(path) if method in ("GET", "HEAD") else path == _RUN if method == "POST" else None
        if not known or len(path) > MAX_PATH_LENGTH or ".." in path:
            raise RefusedError(404, "nothing here")
        if method == "POST":
            receive = _replay(self._checked(await _json(receive)), receive)
        if not _REDACTED.fullmatch(path):
            await self.app(scope, receive, send)
            return
        # What is compressed cannot be looked at.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self.app({**scope, "headers": headers}, receive, _Redacted(send, self._folder).send)

    def _checked(self, content: Any) -> bytes:
        """The request of the page, with nothing but what its function takes."""
        number = content.get("fn_index") if isinstance(content, dict) else None
        if type(number) is not int or number not in self._inputs:
            raise RefusedError(422, "expected the number of one of the page's functions in fn_index")
        values, kinds = content.get("data"), self._inputs[number]
        if not isinstance(values, list) or len(values) != len(kinds):
            raise RefusedError(422, f"expected a list of {len(kinds)} values in data")
        data = [self._image(v) if kind is None else _choice(v, kind) for v, kind in zip(values, kinds, strict=True)]
        # Without a session Gradio keeps nothing for it.
        return json.dumps({"fn_index": number, "data": data}).encode()

    def _image(self, value: Any) -> Any:
        if value is None:
            return None
        name = value.get("path") if isinstance(value, dict) else None
        if not isinstance(name, str):
            raise RefusedError(422, 'expected an image as {"path": NAME}, or null')
        found = self._folder.find(name)
        if found is None:
            raise RefusedError(403, "the image is not here, or not any more: choose it again")
        return {"path": str(found), "meta": {"_type": "gradio.FileData"}}


def _choice(value: Any, choices: frozenset[str]) -> Any:
    if (isinstance(value, str) and value in choices) or (value is None and not choices):
        return value
    raise RefusedError(422, f"expected one of {', '.join(sorted(choices)) or 'nothing'}, got {json.dumps(value)[:60]}")


async def _json(receive: Receive) -> Any:
    body, more = b"", True
    with anyio.move_on_after(JSON_SECONDS) as waited:
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise RefusedError(400, "the request was broken off")
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_JSON_BYTES:
                raise RefusedError(413, f"too many bytes: expected {MAX_JSON_BYTES:,} at most, the image aside; upload that first")
    if waited.cancelled_caught:
        raise RefusedError(408, f"the request did not arrive within {JSON_SECONDS:g} s: try again")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, "expected JSON") from error


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive channel that gives `body` once, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class _Redacted:
    """Sends on what Gradio answers, once it is whole, and without the folder's path."""

    def __init__(self, send: Send, folder: TemporaryImages) -> None:
        self._send, self._body = send, b""
        self._start: Message = {}
        path = str(folder.path)
        self._names = {name.encode() for name in (path, quote(path), json.dumps(path)[1:-1])}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_all()
        else:
            await self._send(message)

    async def _send_all(self) -> None:
        headers, body = MutableHeaders(raw=self._start["headers"]), self._body
        for name in self._names:
            body = body.replace(name, URL_PREFIX.encode())
        if self._start["status"] >= 500:
            body = error_body("the service failed; its log says why")
        if body:  # there is none for HEAD, and its length is of the answer to GET
            headers["content-length"] = str(len(body))
        await self._send({**self._start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})
