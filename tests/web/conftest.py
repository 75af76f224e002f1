"""A service in a process of its own, which writes down whom it talks to, and one in this process to be tampered with."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_bundles import class_bundle, image_bundle
from web_service import Service, start

import img2img


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_bundle(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_bundle(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="session")
def reference(bundle: Path) -> Any:
    """The bundle as Python runs it, on weights that are not merged."""
    return img2img.load(str(bundle))


@pytest.fixture(scope="session")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start(bundle, tmp_path_factory.mktemp("talk") / "talk.txt")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def local() -> Iterator[Callable[..., str]]:
    """`local(model, **limits)`: the URL of a service in this process."""
    from img2img.web import Limits, build_app
    from img2img.web.server import listen
    from img2img.web.shutdown import uvicorn_server

    with contextlib.ExitStack() as stack:

        def run(model: Any, **limits: Any) -> str:
            app = build_app(model, Limits(**limits))
            listening = stack.enter_context(listen("127.0.0.1", 0))
            server = uvicorn_server(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(20)

            stack.callback(stop)
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield run
