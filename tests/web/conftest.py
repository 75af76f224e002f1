"""Services in this process, and a browser; `web_service.start` has a service in a process of its own."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_bundles import class_bundle, image_bundle

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
def merged(bundle: Path) -> Any:
    """The bundle as a service has it."""
    return img2img.load(str(bundle), weights="merged")


@pytest.fixture(scope="session")
def url(merged: Any) -> Iterator[str]:
    """A service in this process, for all tests that leave it as it is."""
    with serving(merged) as address:
        yield address


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


@contextlib.contextmanager
def serving(model: Any, *, teach: Any = None, token: str | None = None, watch: bool = False, **limits: Any) -> Iterator[str]:
    from img2img.web import Limits, build_app
    from img2img.web.server import listen
    from img2img.web.uvicorn_server import uvicorn_server

    app = build_app(model, Limits(**limits), teach=teach, token=token, watch=watch)
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def local() -> Iterator[Callable[..., str]]:
    """`local(model, **limits)`: the URL of a service in this process, for one test."""
    with contextlib.ExitStack() as stack:
        yield lambda model, **limits: stack.enter_context(serving(model, **limits))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the PATH")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-gpu", "--disable-extensions"]
        started = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(url)`: a user at the page. Afterwards each is looked at: no request may have left the machine."""
    from web_page import User

    users: list[User] = []

    def make(url: str, *, tasks: bool = True, **options: Any) -> User:
        users.append(User(browser.new_context(**options)))
        users[-1].open(url, tasks=tasks)
        return users[-1]

    yield make
    found = [user.foreign() for user in users]
    for user in users:
        user.context.close()
    assert found == [[] for _ in users]
