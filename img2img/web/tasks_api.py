"""The part of the HTTP API that changes which tasks are served; whoever uses it has the service's token."""

import hashlib
import hmac
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request

from img2img.errors import InputError
from img2img.web.api import ERRORS, PREFIX
from img2img.web.limits import RefusedError
from img2img.web.service import Service

TASKS_PATH = "/tasks"

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary", "description": "a task's file"}}
        },
    }
}
_Name = Annotated[str | None, Query(max_length=60, description="another name than the one in the file")]
_Replace = Annotated[bool, Query(description="take the place of a task of that name")]


def task_routes(service: Service, *, token: str | None) -> APIRouter:
    """`POST tasks` and `DELETE tasks/NAME`, for requests with `Authorization: Bearer TOKEN`; with None as the token for none."""
    router = APIRouter(prefix=PREFIX, responses=ERRORS)

    @router.post(TASKS_PATH, status_code=201, openapi_extra=_BODY)
    async def add(request: Request, name: _Name = None, replace: _Replace = False) -> dict[str, Any]:
        """Serve a task whose file is the body. It is written into the bundle, so it is there after a restart too."""
        _check_token(request, token)
        with service.changing(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "task.safetensors"
            with path.open("wb") as file:
                async for chunk in service.body(request):
                    await anyio.to_thread.run_sync(file.write, chunk)
            added = await _change(service, lambda: service.tasks.add(path, name=name, replace=replace), path)
        return {"name": added, "tasks": list(service.tasks.infos)}

    @router.delete(TASKS_PATH + "/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        """Delete a task from the bundle, once its requests are done."""
        _check_token(request, token)
        with service.changing():
            await _change(service, lambda: service.tasks.delete(name), None)
        return {"name": name, "tasks": list(service.tasks.infos)}

    return router


async def _change(service: Service, change: Callable[[], Coroutine[Any, Any, Any]], path: Path | None) -> Any:
    try:
        return await change()
    except InputError as error:
        said = str(error).replace(str(path), "the file").replace(str(service.model.folder), "the bundle")
        raise RefusedError(422, said) from error


def _check_token(request: Request, token: str | None) -> None:
    if token is None:
        raise RefusedError(403, "this service changes no tasks: start it with --token-file, and send what is in that file")
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # Digests, since the comparison of texts of different lengths would tell the length.
    digests = [hashlib.sha256(text.strip().encode()).digest() for text in (given, token)]
    if kind.lower() != "bearer" or not hmac.compare_digest(*digests):
        raise RefusedError(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")
