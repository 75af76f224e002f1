"""Images that come in: as the body of a request to the API, or from the page, which fetches them back from here."""

from io import BytesIO
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from PIL import Image
from starlette.datastructures import UploadFile

from img2img.data.images.decode import to_rgb
from img2img.web.image_decode import decode, open_upload
from img2img.web.limits import Limits, RefusedError
from img2img.web.service import Service
from img2img.web.temporary_images import TYPES, TemporaryImages

SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
"""The formats that browsers show; another is kept as PNG."""


async def read_image(request: Request, limits: Limits, *, field: str) -> bytes:
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


def page_routes(service: Service, folder: TemporaryImages) -> APIRouter:
    """What the page uploads to and fetches images from: Gradio's paths, without Gradio behind them."""
    router = APIRouter(prefix="/gradio_api", include_in_schema=False)

    @router.post("/upload")
    async def upload(request: Request) -> Response:
        try:
            with service.admitted():
                blob = await read_image(request, service.limits, field="files")
                path = await service.work(lambda: keep(blob, folder, service.limits))
        except RefusedError as refused:
            return PlainTextResponse(refused.message, status_code=refused.status)  # the page shows the text as it is
        return JSONResponse([folder.public(path)])

    @router.get("/upload_progress")
    async def progress() -> Response:
        return PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @router.get("/file={name:path}")
    async def file(name: str) -> Response:
        path = folder.find(name)
        if path is None:
            raise RefusedError(404, "no such image")
        return FileResponse(path, media_type=TYPES[path.suffix], headers={"cache-control": "private, no-store"})

    return router


def keep(blob: bytes, folder: TemporaryImages, limits: Limits) -> Path:
    """Check an uploaded image and keep it in `folder`; one that browsers do not show as PNG, none of its values changed.

    Raises:
        RefusedError: no image, too large, or damaged.
    """
    image = decode(open_upload(blob, limits))
    suffix = SUFFIXES.get(image.format or "")
    if suffix is not None:
        return folder.add(blob, suffix)
    exif = image.getexif()  # it says which way is up
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(to_rgb(image, "the image"))
    file = BytesIO()
    image.save(file, "PNG", exif=exif)
    return folder.add(file.getvalue(), ".png")
