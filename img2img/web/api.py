"""The HTTP API, version 1: `docs/guides/serve.md` documents it with examples, and `/api/v1/openapi.json` for machines."""

import dataclasses
import json
import math
import zipfile
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from PIL import Image
from starlette.datastructures import UploadFile

from img2img.inference import TaskInfo
from img2img.tasks.segmentation import palette
from img2img.version import __version__
from img2img.web.image_decode import decode, open_upload
from img2img.web.limits import Limits, RefusedError
from img2img.web.sample_images import sample_image, sample_names
from img2img.web.service import Answer, Service

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
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 500, 503), _ERROR)

_PNG: dict[str, Any] = {"content": {"image/png": {}}}
_NO_STORE = {"cache-control": "no-store"}

_Side = Annotated[int | None, Query(ge=1, le=65_536, description="shorter side in pixels at which the network sees the image")]
_Form = Annotated[str | None, Query(description="one of the task's forms, the first by default")]


def api_routes(service: Service, *, teaches: bool = False) -> APIRouter:
    """What uses the tasks: `GET health`, `tasks`, `samples` and `masks`, `POST run/TASK`, `run` and `preview`, under `PREFIX`."""
    router = APIRouter(prefix=PREFIX, responses=ERRORS)

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
            "tasks": [
                {**dataclasses.asdict(info), "pixels": service.tasks.pixels[name], "colours": _colours(info)}
                for name, info in service.tasks.infos.items()
            ],
            "samples": sample_names(),
            "teaches": teaches,
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
        answer = await _ask(service, list(service.tasks.infos), request, form=None, side=side)
        return Response(_zipped(answer.results), media_type="application/zip", headers=_timing(answer))

    @router.post("/preview", response_class=Response, responses={200: _PNG}, openapi_extra=_BODY)
    async def preview(request: Request) -> Response:
        """The image itself as a PNG: for a browser that cannot show its format, and to learn whether the service takes it."""
        with service.admitted():
            blob = await read_upload(request, service.limits, field="image")
            content = await service.work(lambda: _preview(blob, service), disconnected=request.is_disconnected)
        return Response(content, media_type="image/png", headers=_NO_STORE)

    @router.get("/samples/{name}", response_class=Response, responses={200: _PNG})
    async def sample(name: str) -> Response:
        """An image to try, of those that `GET tasks` lists."""
        if name not in sample_names():
            raise RefusedError(404, f"no sample {name[:60]!r} here; there is {', '.join(sample_names()) or 'none'}")
        with service.admitted():
            return Response(await service.work(lambda: sample_image(name)), media_type="image/png")

    @router.get("/masks")
    async def masks() -> dict[str, Any]:
        """What the figures of the tasks' masks show, by the name under which `GET masks/NAME` has them."""
        return {"figures": {name: label for name, (label, _) in (await _figures()).items()}}

    @router.get("/masks/{name}", response_class=Response, responses={200: {"content": {"image/svg+xml": {}}}})
    async def figure(name: str) -> Response:
        """A figure of the tasks' masks."""
        found = (await _figures()).get(name)
        if found is None:
            raise RefusedError(404, f"no figure {name[:60]!r} here: GET masks lists those that there are")
        return Response(found[1], media_type="image/svg+xml", headers=_NO_STORE)

    async def _figures() -> dict[str, tuple[str, bytes]]:
        with service.admitted():
            return await service.work(service.tasks.mask_figures)

    return router


PREVIEW_BYTES = 60
"""Bytes a pixel of an image that is decoded and written as a PNG, at most: 11 to 17 measured (JPEG, WebP, PNG with alpha)."""


async def _ask(service: Service, tasks: list[str], request: Request, *, form: str | None, side: int | None) -> Answer:
    for task in tasks:  # before the image is sent, which may take long
        service.tasks.check(task, form=form)
    with service.admitted():
        image = await read_upload(request, service.limits, field="image")
        return await service.run(tasks, image, finish=_written, form=form, side=side, disconnected=request.is_disconnected)


async def read_upload(request: Request, limits: Limits, *, field: str) -> bytes:
    """The image's file in a request: its body, or `field` of a form; `SecurityMiddleware` bounds its bytes and its time.

    Raises:
        RefusedError: 422 for none, 413 for one of too many bytes.
    """
    blob = await _read(request, field)
    if not blob:
        raise RefusedError(422, f"no image came: send its file as the request's body, or as the field {field!r} of a form")
    if len(blob) > limits.upload_bytes:
        raise RefusedError(413, f"too many bytes: expected {limits.upload_bytes:,} at most; send a smaller file")
    return blob


async def _read(request: Request, field: str) -> bytes:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        found = form.get(field)
        return await found.read() if isinstance(found, UploadFile) else b""


def _preview(blob: bytes, service: Service) -> bytes:
    size = open_upload(blob, service.limits).size
    needed, most = PREVIEW_BYTES * math.prod(size), service.limits.image_bytes
    if needed > most:
        raise RefusedError(
            413,
            f"an image of {size[0]} x {size[1]} pixels would take {needed / 1e9:.1f} GB to be shown: expected "
            f"{most / 1e9:.1f} GB at most, {most // PREVIEW_BYTES:,} pixels; make it smaller",
        )
    with service.memory.take(needed):
        values = decode(blob).values[0]  # upright, and transparent pixels on white
        return png(Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy())))


def _colours(info: TaskInfo) -> list[list[int]]:
    """The colours of a segmentation's classes, as (red, green, blue) in 0..255; none for other tasks."""
    classes = info.classes if info.kind == "segmentation" else ()
    return [[int(value) for value in colour] for colour in palette(len(classes)).mul(255).round()[: len(classes)]]


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
