"""The HTTP API, version 1: `docs/serve.md` documents it with examples, and `/api/v1/openapi.json` for machines."""

import dataclasses
import json
import zipfile
from io import BytesIO
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from img2img import __version__
from img2img.web.limits import RefusedError
from img2img.web.service import Answer, Service
from img2img.web.uploads import read_image

PREFIX = "/api/v1"

_FILE = {"type": "string", "format": "binary", "description": "the file of an image: JPEG, PNG, WebP, TIFF, BMP or GIF"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": _FILE},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": _FILE}, "required": ["image"]}},
        },
    }
}
_ERROR = {
    "description": "what was wrong",
    "content": {
        "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}}
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((403, 404, 408, 413, 415, 422, 500, 503), _ERROR)

_Side = Annotated[int | None, Query(ge=1, le=65_536, description="shorter side in pixels at which the network sees the image")]
_Form = Annotated[str | None, Query(description="one of the task's forms, the first by default")]


def api_routes(service: Service) -> APIRouter:
    """`GET health`, `GET tasks`, `POST run/TASK` and `POST run`, under `PREFIX`."""
    router = APIRouter(prefix=PREFIX, responses=_ERRORS)

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the service is up, and how busy it is; 503 when it stops."""
        if service.stopping:
            raise RefusedError(503, "the service stops")
        return {"status": "ok", "version": __version__, "running": service.running, "waiting": service.waiting}

    @router.get("/tasks")
    async def tasks() -> dict[str, Any]:
        """The tasks in the order in which they were learned, and the limits of the service."""
        return {
            "tasks": [{**dataclasses.asdict(info), "pixels": service.pixels[name]} for name, info in service.tasks.items()],
            "limits": dataclasses.asdict(service.limits),
        }

    @router.post(
        "/run/{task}",
        response_class=Response,
        responses={200: {"content": {"image/png": {}, "application/json": {}}, "description": "the result"}},
        openapi_extra=_BODY,
    )
    async def run(task: str, request: Request, form: _Form = None, side: _Side = None) -> Response:
        """One task on one image: a PNG, or the scores of a classification as JSON."""
        answer = await _ask(service, [task], request, form=form, side=side)
        result = answer.results[task]
        kind = "image/png" if isinstance(result, bytes) else "application/json"
        content = result if isinstance(result, bytes) else json.dumps({"scores": result}, ensure_ascii=False).encode()
        return Response(content, media_type=kind, headers=_timing(answer))

    @router.post(
        "/run",
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}, "description": "a PNG for each task"}},
        openapi_extra=_BODY,
    )
    async def run_all(request: Request, side: _Side = None) -> Response:
        """Every task on one image: a zip with `TASK.png` for each."""
        answer = await _ask(service, list(service.tasks), request, form=None, side=side)
        return Response(_zipped(answer.results), media_type="application/zip", headers=_timing(answer))

    @router.api_route("/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    async def nothing(rest: str) -> Response:
        return JSONResponse({"error": f"nothing at {PREFIX}/{rest}: see docs/serve.md"}, status_code=404)

    return router


async def _ask(service: Service, tasks: list[str], request: Request, *, form: str | None, side: int | None) -> Answer:
    for task in tasks:  # before the image is sent, which may take long
        service.check(task, form=form)
    with service.admitted():
        image = await read_image(request, service.limits, field="image")
        return await service.run(tasks, image, finish=_written, form=form, side=side, disconnected=request.is_disconnected)


def _written(result: Any) -> Any:
    """An image as the bytes of a PNG, scores as they are."""
    return png(result) if isinstance(result, Image.Image) else result


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG."""
    file = BytesIO()
    image.save(file, "PNG", compress_level=3)  # a third of the time of 6, for a few per cent more bytes
    return file.getvalue()


def _zipped(results: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for task, result in results.items():
            archive.writestr(f"{task}.png", result)
    return file.getvalue()


def _timing(answer: Answer) -> dict[str, str]:
    return {"server-timing": f"run;dur={1000 * answer.seconds:.1f}", "cache-control": "no-store"}
