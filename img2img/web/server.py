"""The service as a whole: `build_app` puts its parts together, `serve` runs it."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import socket
import webbrowser
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img import __version__
from img2img.errors import InputError
from img2img.extras import require
from img2img.web.limits import Limits, RefusedError
from img2img.web.log_rate_limit import rate_limited_logging
from img2img.web.temporary_images import TemporaryImages, private_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

    from img2img.inference import Model

CLEAN_EVERY = 60.0
"""Seconds between two looks for images of the page that have become old."""

LOCAL = ("localhost", "127.0.0.1", "::1")
SERVICE_PATHS = re.compile(r"/api/v1/|/gradio_api/(upload|upload_progress|file=.*)$")
"""The paths that the service answers itself; all others are the page's, which Gradio answers."""


def build_app(
    model: "Model", limits: Limits | None = None, *, hosts: Sequence[str] = LOCAL, any_address: bool = False
) -> "FastAPI":
    """The page and the API of a model as one application.

    Args:
        model: with `weights="merged"`, so that tasks run side by side.
        limits: the bounds; the usual ones by default.
        hosts: names under which it may be reached.
        any_address: it may be reached under any IP address too.

    Raises:
        InputError: a package is not installed, or the model has no tasks.
    """
    folder = private_folder()  # before Gradio is imported
    gradio = _gradio()
    from fastapi import FastAPI

    from img2img.web.api import PREFIX, api_routes
    from img2img.web.gradio_allowlist import GradioAllowlist
    from img2img.web.page import CSS, build_page, page_inputs, theme
    from img2img.web.security import SecurityMiddleware
    from img2img.web.service import Service
    from img2img.web.uploads import page_routes

    limits = limits or Limits()
    service = Service(model, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        cleaning = asyncio.create_task(_clean(folder))
        yield
        cleaning.cancel()

    # FastAPI's pages of documentation load scripts from elsewhere.
    about: Any = {"title": "img2img", "version": __version__, "openapi_url": f"{PREFIX}/openapi.json"}
    app = FastAPI(docs_url=None, redoc_url=None, lifespan=lifespan, **about)
    _answer_errors(app)
    app.include_router(api_routes(service))
    app.include_router(page_routes(service, folder))
    page = build_page(service, folder)
    gradio.mount_gradio_app(
        app, page, path="/", theme=theme(), css=CSS, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False,
        pwa=False, show_error=False, max_file_size=limits.upload_bytes, enable_monitoring=False, app_kwargs={"openapi_url": None},
    )  # fmt: skip
    # Gradio checks the files that a request names only in pages that it launched itself. `GradioAllowlist` checks them before it does.
    page.has_launched = True
    page.config["version"] = ""
    folder.keep_all()
    # The last one added is the first that a request meets.
    app.add_middleware(GradioAllowlist, service_paths=SERVICE_PATHS, folder=folder, inputs=page_inputs(page))
    app.add_middleware(
        SecurityMiddleware, hosts=tuple(hosts), any_address=any_address, body_bytes=limits.upload_bytes, body_seconds=limits.upload_seconds
    )
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
        limits: the bounds; the usual ones by default.
        open_browser: open the page when it is there.

    Raises:
        InputError: no bundle, no such device, the port is in use, or a package is not installed.
    """
    # Whatever is loaded asks nobody for a newer version or a model of some name: all there is to serve is in the bundle.
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    private_folder()
    _gradio()
    from img2img.inference import load
    from img2img.web.shutdown import uvicorn_server

    listening = listen(host, port)
    with listening:
        model = load(bundle, device=device, weights="merged", precision=precision)
        local = _is_local(host)
        known_hosts = (*LOCAL, *names) if local else (*LOCAL, *names, host, socket.gethostname(), socket.getfqdn())
        app = build_app(model, limits, hosts=known_hosts, any_address=not local)
        url = _url(host, listening.getsockname()[1])
        print(f"img2img serves {', '.join(model.tasks)} at {url} (Ctrl-C stops it)", flush=True)
        if not local:
            print("whoever can reach this machine can use it", flush=True)
        if open_browser:
            webbrowser.open(url)
        with rate_limited_logging(), contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down, and raises the signal again
            uvicorn_server(app, at_end=private_folder().delete).run(sockets=[listening])


def _gradio() -> Any:
    extra, what = "images,train,serve", "the web service"
    require("matplotlib", extra=extra, what=what)  # for the figures of masks
    with _no_proxies():
        return require("gradio", extra=extra, what=what)


@contextlib.contextmanager
def _no_proxies() -> Iterator[None]:
    """Without the environment's proxies: Gradio makes a client as it is imported, which fails where it cannot speak to one.

    A service at home asks nobody, through a proxy or otherwise.
    """
    set_aside = {name: value for name, value in os.environ.items() if name.lower() in ("all_proxy", "http_proxy", "https_proxy")}
    for name in set_aside:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ |= set_aside


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, taken before the bundle is read, so that nobody waits for an error."""
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


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


async def _clean(folder: TemporaryImages) -> None:
    while True:
        await asyncio.sleep(CLEAN_EVERY)
        await asyncio.to_thread(folder.clean)


def _answer_errors(app: "FastAPI") -> None:
    """Every error as JSON, `{"error": ...}`, and none that tells of the machine."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

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
        where, got = ".".join(str(part) for part in first["loc"][1:]), repr(first["input"])[:60]
        return answer(422, f"{where}: {first['msg'].lower()}, got {got}")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
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
