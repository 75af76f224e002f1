"""What of Gradio can be reached: what the page needs, and no more.

Gradio answers dozens of paths, some of which read files, fetch URLs or run code, and it checks the files that a request names
only in applications that it started itself. Here everything that is not listed is not there, files are served by `uploads`, and
a request to run names pictures of the service's own folder or is refused.
"""

import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from img2img.web.files import PictureFolder
from img2img.web.limits import RefusedError

MOST_JSON = 262_144
LONGEST = 200
"""Characters of a path; a file's name of more than 255 is an error of the system."""

_GET = re.compile(
    r"/|/config|/theme\.css|/manifest\.json|/favicon\.ico|/(assets|static)/[\w./@~-]+"
    r"|/gradio_api/(app_id|queue/data|heartbeat/\w+)"
)
_POST = re.compile(r"/gradio_api/(queue/join|run/predict|cancel|reset)")


class Gate:
    """Lets through to Gradio what the page needs.

    Args:
        app: the application with Gradio in it.
        own: matches the paths that are not Gradio's.
        folder: where pictures are.
    """

    def __init__(self, app: ASGIApp, *, own: re.Pattern[str], folder: PictureFolder) -> None:
        self.app, self._own, self._folder = app, own, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or raise `RefusedError` for `Guard` to answer."""
        path = scope["path"] if scope["type"] == "http" else ""
        if not path or self._own.match(path):
            await self.app(scope, receive, send)
            return
        known = {"GET": _GET, "HEAD": _GET, "POST": _POST}.get(scope["method"])
        if known is None or len(path) > LONGEST or not known.fullmatch(path) or ".." in path:
            raise RefusedError(404, "nothing here")
        if scope["method"] == "POST":
            receive = _again(await self._checked_json(receive), receive)
        await self.app(scope, receive, send)

    async def _checked_json(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise RefusedError(400, "the request was broken off")
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MOST_JSON:
                raise RefusedError(413, f"too many bytes: expected {MOST_JSON:,} at most, the picture aside; upload that first")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RefusedError(422, "expected JSON") from error
        return json.dumps(self._checked(content)).encode()

    def _checked(self, value: Any) -> Any:
        """The same, with each file it names one of the folder's, and no URL that would be fetched or decoded."""
        if isinstance(value, list):
            return [self._checked(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "path" in value or "url" in value:
            found = self._folder.find(value["path"]) if isinstance(value.get("path"), str) else None
            if found is None:
                raise RefusedError(403, "the picture is not here, or not any more: choose it again")
            return {**{key: self._checked(one) for key, one in value.items()}, "path": str(found), "url": None}
        return {key: self._checked(one) for key, one in value.items()}


def _again(body: bytes, receive: Receive) -> Receive:
    """A receive channel that gives `body` once, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
