"""The part of the HTTP API that trains a further task, for the user of this machine: `img2img serve --teach`."""

import asyncio
import tempfile
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from img2img.web.api import PREFIX
from img2img.web.limits import RefusedError
from img2img.web.service import Service, with_refusals
from img2img.web.teach import Teacher
from img2img.web.teach_files import Kind, TeachFiles

ZIP_PATH = "/teach/zip"


class NewJob(BaseModel):
    """What `POST teach` takes."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    kind: Kind
    steps: int = 600
    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=255)] = []
    values: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(max_length=256)] = []


def teach_routes(teacher: Teacher, service: Service) -> APIRouter:
    """`GET`, `POST` and `DELETE teach`; `PUT teach/files/ROLE/NAME`, `POST teach/zip`, `start`, `stop`; `GET preview`, `file`."""
    router = APIRouter(prefix=PREFIX)
    uploads, unpacking = anyio.CapacityLimiter(2), asyncio.Lock()

    @router.get("/teach")
    def status() -> dict[str, Any]:
        """How far the training is."""
        return teacher.status()

    @router.post("/teach")
    def create(asked: NewJob) -> dict[str, Any]:
        """Name a training; its images come next."""
        with_refusals(lambda: teacher.create(asked.name, asked.kind, asked.steps, asked.classes, asked.values))
        return teacher.status()

    @router.put("/teach/files/{role}/{name:path}")
    async def add(role: str, name: str, request: Request) -> dict[str, Any]:
        """An image of the training: its file is the body."""
        files = teacher.files
        with service.changing():
            blob = b"".join([chunk async for chunk in service.body(request)])
            await anyio.to_thread.run_sync(lambda: with_refusals(lambda: files.add(role, name, blob)), limiter=uploads)
        return {"counts": files.counts}

    @router.post(ZIP_PATH)
    async def add_zip(request: Request, role: str) -> dict[str, Any]:
        """A zip of images, as the body. Folders in it called inputs, targets, images, labels or style say what is what."""
        files = teacher.files
        if unpacking.locked():
            raise RefusedError(409, "another zip is on its way: send one after the other")
        async with unpacking:
            with service.changing():
                return await _add_zip(request, role, files)

    async def _add_zip(request: Request, role: str, files: TeachFiles) -> dict[str, Any]:
        with tempfile.TemporaryFile() as kept:
            async for chunk in service.body(request):
                await anyio.to_thread.run_sync(kept.write, chunk, limiter=uploads)
            most = teacher.image_bytes
            others = await anyio.to_thread.run_sync(
                lambda: with_refusals(lambda: files.add_zip(role, kept, most=most)), limiter=uploads
            )
        return {"counts": files.counts, "others": others}

    @router.post("/teach/start")
    def start() -> dict[str, Any]:
        """Start the training, or go on with it."""
        with_refusals(teacher.start)
        return teacher.status()

    @router.post("/teach/stop")
    def stop() -> dict[str, Any]:
        """Stop it; it can go on later."""
        teacher.stop()
        return teacher.status()

    @router.delete("/teach")
    def discard() -> dict[str, Any]:
        """Stop it and delete its files; what is in the bundle already stays."""
        teacher.discard()
        return teacher.status()

    @router.get("/teach/preview", response_class=FileResponse)
    def preview() -> FileResponse:
        """Images that it does not learn from: inputs, outputs and targets in rows."""
        return FileResponse(teacher.preview(), media_type="image/jpeg", headers={"cache-control": "no-store"})

    @router.get("/teach/file", response_class=FileResponse)
    def file() -> FileResponse:
        """The file of the task that was learned."""
        path = teacher.task_file()
        return FileResponse(
            path, media_type="application/octet-stream", filename=path.name, headers={"cache-control": "no-store"}
        )

    return router
