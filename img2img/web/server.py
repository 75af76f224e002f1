"""The service as a whole: `build_app` puts its parts together, `serve` runs it."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import webbrowser
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img.errors import InputError
from img2img.extras import require
from img2img.version import __version__
from img2img.web.limits import Limits, RefusedError, TeachOptions
from img2img.web.log_rate_limit import rate_limited_logging

if TYPE_CHECKING:
    from fastapi import FastAPI

    from img2img.inference import Batching, Model

MIN_TOKEN = 16
"""Letters that a token has at least."""

LOCAL = ("localhost", "127.0.0.1", "::1")


def build_app(
    model: "Model",
    limits: Limits | None = None,
    *,
    hosts: Sequence[str] = LOCAL,
    any_address: bool = False,
    teach: TeachOptions | None = None,
    token: str | None = None,
    watch: bool = False,
) -> "FastAPI":
    """The page and the API of a model as one application.

    Args:
        model: with `batching`, so that requests share batches, or `weights="merged"`, so that tasks run side by side.
        limits: the bounds; the usual ones by default.
        hosts: names under which it may be reached; a port with one does not matter.
        any_address: it may be reached under any IP address too.
        teach: lets the page train further tasks, for `LOCAL` hosts alone; None for none.
        token: lets whoever has it add and delete tasks; None for nobody.
        watch: follow the bundle's folder, whatever changes it.

    Raises:
        InputError: a package is not installed, the token is too short, a host is none, the model has no tasks, or with `teach`
            others than this machine's users could train, or the bundle came with img2img.
    """
    _require_packages()
    from fastapi import FastAPI

    from img2img.web.api import PREFIX, api_routes
    from img2img.web.monitoring import MonitoringMiddleware, Requests, monitoring_routes
    from img2img.web.page import page_routes
    from img2img.web.security import SecurityMiddleware, host_names
    from img2img.web.service import Service
    from img2img.web.tasks_api import TASKS_PATH, task_routes

    if token is not None and len(token) < MIN_TOKEN:
        raise InputError(f"the token has {len(token)} letters: expected {MIN_TOKEN} or more, such as of openssl rand -hex 32")
    hosts, limits = host_names(hosts), limits or Limits()
    service, requests = Service(model, limits), Requests()
    larger = {} if token is None else {f"{PREFIX}{TASKS_PATH}": (limits.task_bytes, limits.upload_seconds)}
    routers = [page_routes(), monitoring_routes(service, requests)]
    at_end = contextlib.ExitStack()
    if teach is not None:
        from img2img.bundle import check_not_packaged
        from img2img.web.teach import Teacher
        from img2img.web.teach_api import ZIP_PATH, teach_routes

        if any_address or not set(hosts) <= set(LOCAL):
            raise InputError(f"teach for {', '.join(hosts)}: expected this machine alone; leave out teach, or the other hosts")
        check_not_packaged(model.folder)
        teacher = Teacher(service, teach)
        at_end.callback(teacher.close)
        larger[f"{PREFIX}{ZIP_PATH}"] = (teach.upload_bytes, teach.upload_seconds)
        routers.append(teach_routes(teacher, service))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.ensure_future(service.tasks.watch()) if watch else None
        with at_end:
            yield
        if watching is not None:
            watching.cancel()

    # FastAPI's pages of documentation load scripts from elsewhere.
    about: Any = {"title": "img2img", "version": __version__, "openapi_url": f"{PREFIX}/openapi.json"}
    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan, **about)
    _answer_errors(app)
    api = api_routes(service, teaches=teach is not None)
    for router in (*routers, api, task_routes(service, token=token)):
        app.include_router(router)
    app.add_middleware(
        SecurityMiddleware,
        hosts=hosts,
        any_address=any_address,
        body_bytes=limits.upload_bytes,
        body_seconds=limits.upload_seconds,
        larger=larger,
    )
    app.add_middleware(MonitoringMiddleware, service=service, requests=requests)
    app.state.service = service
    return app


def serve(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    names: Sequence[str] = (),
    device: str = "auto",
    precision: Any = "float32",
    limits: Limits | None = None,
    batching: "Batching | None" = None,
    weights_bytes: int | None = None,
    loaded_bytes: int | None = None,
    teach: TeachOptions | None = None,
    token: str | None = None,
    watch: bool = False,
    open_browser: bool = False,
) -> None:
    """Serve a bundle until Ctrl-C: a page at `/`, and the HTTP API at `/api/v1`.

    Args:
        bundle: its folder, or that of a run.
        host: the address to listen at. "0.0.0.0" is every one of the machine's: whoever can reach it can use the service.
        port: 0 for any that is free.
        names: further names under which the service is reached, such as that of a proxy before it.
        device: "cpu", "cuda", ..., or "auto".
        precision: "float32" or "bfloat16".
        limits: the bounds; the usual ones by default. Without `Limits.concurrency` twice as many images at once as a batch has.
        batching: how requests are gathered into batches; the usual way by default. Where a batch has one image (the usual way
            on a CPU) tasks run side by side, as many as `Limits.concurrency` says.
        weights_bytes: as of `Model`.
        loaded_bytes: likewise.
        teach: lets the page train further tasks, on this machine alone; None for none.
        token: as of `build_app`.
        watch: likewise.
        open_browser: open the page when it is there.

    Raises:
        InputError: no bundle, no such device, the port is in use, or a package is not installed; or what `build_app` refuses.
    """
    _require_packages()
    local = is_local(host)
    if teach is not None and (names or not local):
        got = ", ".join([*([] if local else [f"--host {host}"]), *(f"--name {name}" for name in names)])
        raise InputError(
            f"--teach with {got}: expected this machine alone, since whoever reaches the page could train; leave one out"
        )
    from img2img.web.uvicorn_server import uvicorn_server

    with listen(host, port) as listening:
        app = bundle_app(
            bundle, host=host, names=names, device=device, precision=precision, limits=limits, batching=batching,
            weights_bytes=weights_bytes, loaded_bytes=loaded_bytes, teach=teach, token=token, watch=watch,
        )  # fmt: skip
        url = url_of(host, listening.getsockname()[1])
        print(f"img2img serves {', '.join(app.state.service.tasks.infos)} at {url} (Ctrl-C stops it)", flush=True)
        if not local:
            print("whoever can reach this machine can use it", flush=True)
        if open_browser:
            webbrowser.open(url)
        with rate_limited_logging(), contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down, and raises the signal again
            uvicorn_server(app).run(sockets=[listening])


def bundle_app(
    bundle: str | Path,
    *,
    host: str,
    names: Sequence[str] = (),
    device: str = "auto",
    precision: Any = "float32",
    limits: Limits | None = None,
    batching: "Batching | None" = None,
    weights_bytes: int | None = None,
    loaded_bytes: int | None = None,
    **more: Any,
) -> "FastAPI":
    """The application of a bundle on a device; `more` goes to `build_app`, and the other arguments are those of `serve`."""
    # No library shall look for newer versions or models on the network: the bundle has all that is served.
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    from img2img.inference import Batching, load
    from img2img.inference.device import chosen_device, usual_batch
    from img2img.web.security import host_names, is_host

    local = is_local(host)
    named = host_names(names)  # before the bundle is read, so that an error comes at once
    own = [] if local else [name for name in (host, socket.gethostname(), socket.getfqdn()) if is_host(name)]
    batching, limits = batching or Batching(), limits or Limits()
    place = chosen_device(device)
    most = batching.batch_max or usual_batch(place)
    merged = most == 1 or place.type == "cpu"  # on a CPU batches run side by side too
    model = load(
        bundle, device=device, precision=precision, weights="merged" if merged else "cached", weights_bytes=weights_bytes,
        loaded_bytes=loaded_bytes, batching=batching,
    )  # fmt: skip
    limits = replace(limits, concurrency=limits.concurrency or 2 * most)
    return build_app(model, limits, hosts=(*LOCAL, *named, *own), any_address=not local, **more)


def _require_packages() -> None:
    for name in ("fastapi", "uvicorn", "python_multipart"):
        require(name, extra="images,train,serve", what="the web service")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, taken before the bundle is read, so that an error comes at once."""
    if not 0 <= port <= 65535:
        raise InputError(f"port={port}: expected 1 to 65535, or 0 for any that is free")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host={host!r} is no address or name of this machine: give 127.0.0.1, or 0.0.0.0 for all") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is in use: choose another, or 0 for any that is free") from error
        raise InputError(f"cannot listen at {host}:{port} ({error.strerror}): choose another host or port") from error
    return listening


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, port: int) -> str:
    """Where a browser on this machine finds what listens at an address."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _answer_errors(app: "FastAPI") -> None:
    """Every error as JSON, `{"error": ...}`, and none that tells of the machine."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    from img2img.web.api import PREFIX
    from img2img.web.service import as_resource_refusal

    def answer(status: int, message: str) -> Response:
        headers = {"retry-after": "2"} if status == 503 else None
        return JSONResponse({"error": message}, status_code=status, headers=headers)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return answer(error.status, error.message)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            said, place = first["ctx"]["error"].lower(), first["loc"][-1]
            return answer(422, f"the request's body is no JSON: {said}, after {place} characters; correct it there")
        where, got = ".".join(str(part) for part in first["loc"][1:]) or "the request's body", repr(first["input"])[:60]
        return answer(422, f"{where}: {first['msg'].lower()}, got {got}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path, guide = request.scope["path"], "see docs/guides/serve.md"
        if path.startswith(f"{PREFIX}/") and error.status_code == 404:
            return answer(404, f"nothing at {path}: {guide}")
        if path.startswith(f"{PREFIX}/") and error.status_code == 405:
            return answer(405, f"{path} does not take {request.method}: {guide}")
        return answer(error.status_code, str(error.detail).lower())

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    async def scarce(_: Request, error: Exception) -> Response:
        refused = as_resource_refusal(error)
        if refused is None:
            raise error
        return answer(refused.status, refused.message)

    for kind in (OSError, MemoryError, RuntimeError):
        app.add_exception_handler(kind, scarce)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return answer(500, "the service failed; its log says why")
