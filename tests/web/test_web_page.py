"""The page in a real browser: it shows what `Model.run` gives, and asks nobody else for anything."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from web_bundles import encoded, make_bundle, photo, same
from web_service import Service

import img2img

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


class Watched:
    """A user: a browser of one's own, whose every request is written down."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.requests: list[str] = []
        self.console: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda error: self.console.append(f"error: {error.error}"))
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)

    def foreign(self) -> list[str]:
        """Requests that leave the machine, and attempts that the page's policy stopped."""
        parts = [urlsplit(url) for url in self.requests]
        left = [part.geturl() for part in parts if part.scheme not in ("data", "blob") and part.hostname != "127.0.0.1"]
        return left + [line for line in self.console if "Content Security Policy" in line]

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.locator("#run").wait_for()

    def upload(self, path: Path) -> None:
        clear = self.page.get_by_role("button", name="Remove Image").or_(
            self.page.locator("#image").get_by_role("button", name="Clear")
        )
        if clear.count():
            clear.first.click()
        self.page.locator("#image input[type=file]").set_input_files(path)

    def uploaded(self) -> None:
        self.page.locator("#image img").wait_for()

    def run(self, task: str, form: str | None = None) -> None:
        """Choose, run and wait for the answer."""
        self.start(task, form)
        self.finish(task)

    def start(self, task: str, form: str | None = None) -> None:
        self.page.locator("#task").get_by_role("radio", name=task, exact=True).check()
        forms = self.page.locator("#form")
        if form is None:
            expect(forms).to_have_count(0)
        else:
            forms.get_by_role("radio", name=form, exact=True).check()
        self.page.locator("#run").click()

    def finish(self, task: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(f"{task}: ", timeout=60_000)
        expect(self.page.locator("#status")).to_contain_text("pixels in")

    def shown(self, where: str) -> list[Image.Image]:
        """The images that an element shows, as the browser gets them, once they are there."""
        images = self.page.locator(where).locator("img")
        images.first.wait_for()
        sources = images.evaluate_all("images => images.map(image => image.src)")
        return [Image.open(io.BytesIO(self.context.request.get(source).body())) for source in sources]

    def shows(self, expected: Image.Image) -> bool:
        """Whether the slider's right half shows this, once what it showed before is gone."""
        expect(self.page.locator("#slider img")).to_have_count(2)
        until = time.monotonic() + 20
        while not (found := same(self.shown("#slider")[1], expected)) and time.monotonic() < until:
            time.sleep(0.1)
        return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Watched]]:
    """`visit(url)`: a user at the page. Afterwards each is looked at: no request may have left the machine."""
    users: list[Watched] = []

    def make(url: str, **options: Any) -> Watched:
        users.append(Watched(browser.new_context(**options)))
        users[-1].open(url)
        return users[-1]

    yield make
    found = [user.foreign() for user in users]
    for user in users:
        user.context.close()
    assert found == [[] for _ in users]


def saved(path: Path, blob: bytes) -> Path:
    path.write_bytes(blob)
    return path


# ---------------------------------------------------------------------- what it shows


def test_each_task_shows_what_model_run_gives(
    visit: Callable[..., Watched], service: Service, reference: Any, tmp_path: Path
) -> None:
    user = visit(service.url)
    path = saved(tmp_path / "photo.jpg", encoded(photo(), "JPEG"))
    user.upload(path)
    user.uploaded()
    for task, form in (("disks", "colours"), ("colour", None), ("edges", None), ("disks", "overlay"), ("disks", "labels")):
        user.run(task, form)
        assert user.shows(reference.run(task, str(path), form=form)), (task, form)
        assert user.page.get_by_role("list", name="classes").count() == (task == "disks")
    assert same(user.shown("#slider")[0], Image.open(path))
    assert user.page.get_by_text("a <b>bold</b> class", exact=True).is_visible()  # a class's name is no HTML


def test_all_tasks_at_once(visit: Callable[..., Watched], service: Service, reference: Any, tmp_path: Path) -> None:
    user = visit(service.url)
    deep = Image.effect_noise((50, 40), 60).convert("I;16").point(lambda value: value * 200)
    path = saved(tmp_path / "deep.tiff", encoded(deep, "TIFF"))  # no browser shows it as it is
    user.upload(path)
    user.uploaded()
    assert user.page.locator("#image img").evaluate("image => image.naturalWidth") == 50
    user.run("all tasks")
    expected = reference.run_all(str(path))
    expect(user.page.locator("#gallery img")).to_have_count(len(expected))
    assert all(same(a, b) for a, b in zip(user.shown("#gallery"), expected.values(), strict=True))
    assert user.page.locator("#gallery .caption-label").all_inner_texts() == list(expected)


def test_a_sample_and_a_pasted_image(visit: Callable[..., Watched], service: Service, reference: Any) -> None:
    user = visit(service.url, permissions=["clipboard-read", "clipboard-write"])
    page = user.page
    page.locator("#samples").get_by_role("button", name="coffee").click()
    user.uploaded()
    (sample,) = user.shown("#image")
    user.run("colour")
    assert user.shows(reference.run("colour", sample))
    page.locator("#image").get_by_role("button").last.click()
    page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), {width: 30, height: 20});
            canvas.getContext("2d").fillRect(5, 5, 9, 9);
            const blob = await new Promise(resolve => canvas.toBlob(resolve));
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }"""
    )
    page.get_by_role("button", name="Paste from clipboard").click()
    expect(page.locator("#image img")).to_have_js_property("naturalWidth", 30)
    (pasted,) = user.shown("#image")
    user.run("edges")
    assert user.shows(reference.run("edges", pasted))


def test_scores_of_a_classification(
    visit: Callable[..., Watched], classes: Path, local: Callable[..., str], tmp_path: Path
) -> None:
    model = img2img.load(str(classes), weights="merged")
    user = visit(local(model))
    user.upload(saved(tmp_path / "photo.png", encoded(photo())))
    user.uploaded()
    user.run("birds")
    said = user.page.locator("#scores").inner_text()
    for name, score in model.run("birds", photo(), form="scores").items():
        assert name in said
        assert f"{100 * score:.0f}%" in said
    assert user.page.locator("#slider").count() == 0


NASTY = [
    "a\n\n<img src=x onerror=\"document.title='hacked'\">",
    "b\r\n\r\n[link](javascript:document.title='hacked') ![p](http://192.0.2.1/pixel.png)",
    "c</li></ul><script>document.title='hacked'</script>",
    "d $$\\href{javascript:x}{y}$$ **bold** `code` &lt;b&gt;",
    "\u2028# e\u2029\x00 <b>",
]


def test_names_from_a_bundle_are_text(visit: Callable[..., Watched], local: Callable[..., str], tmp_path: Path) -> None:
    backbone = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}
    bundle = make_bundle(tmp_path / "nasty", backbone, {"disks": {"kind": "segmentation", "classes": NASTY}})
    user = visit(local(img2img.load(str(bundle), weights="merged")))
    user.upload(saved(tmp_path / "photo.png", encoded(photo())))
    user.uploaded()
    user.run("disks", "colours")
    items = user.page.locator("#legend li")
    shown = [" ".join(name.replace("\0", "").split()) for name in NASTY]
    expect(items).to_have_text(shown)
    found = user.page.locator("#legend").locator("img, script, a, strong, code, h1, .katex")
    assert found.count() == 0
    assert user.page.title() == "img2img"


def test_the_masks(visit: Callable[..., Watched], service: Service) -> None:
    user = visit(service.url)
    page = user.page
    page.get_by_role("tab", name="Masks").click()
    for figure in ("Zeroed weights of each task's mask, by layer", "Ratio of equal values of every two tasks' masks"):
        expect(page.get_by_role("img", name=figure)).to_be_visible()
    rows = page.locator("#masks tbody tr").all_inner_texts()
    assert [row.split()[:2] for row in rows] == [["disks", "segmentation"], ["colour", "colourisation"], ["edges", "edges"]]
    assert "49.6 % zeroed" in rows[1]


# ---------------------------------------------------------------------- what it does not take


def test_broken_and_huge_images_are_told_and_the_page_goes_on(
    visit: Callable[..., Watched], service: Service, reference: Any, tmp_path: Path
) -> None:
    user = visit(service.url)
    broken = {
        "text.png": (b"not an image", "no image that can be read"),
        "half.png": (encoded(photo(300, 300))[:5000], "the image is damaged"),
        "wide.png": (encoded(Image.new("1", (6000, 5000))), "expected 24,000,000 at most"),
        "long.png": (encoded(photo()) + bytes(21_000_000), "exceed the maximum allowed size"),
    }
    for name, (blob, said) in broken.items():
        user.upload(saved(tmp_path / name, blob))
        toast = user.page.get_by_test_id("toast-body").filter(has_text=said)
        toast.wait_for()
        assert "/tmp" not in toast.inner_text()
        toast.get_by_test_id("toast-close").click()
        expect(user.page.locator("#image img")).to_have_count(0)
    user.page.locator("#run").click()
    user.page.get_by_text("Choose an image first").wait_for()
    user.upload(saved(tmp_path / "whole.png", encoded(photo())))
    user.uploaded()
    user.run("colour")
    assert user.shows(reference.run("colour", photo()))


def test_two_users_at_once(visit: Callable[..., Watched], service: Service, reference: Any, tmp_path: Path) -> None:
    users = [visit(service.url) for _ in range(2)]
    asked = [("colour", None), ("edges", None), ("disks", "colours")]
    for number in range(3):
        jobs = []
        for i, user in enumerate(users):
            path = saved(tmp_path / f"{number}{i}.png", encoded(photo(500 + 40 * i, 400, seed=10 * number + i)))
            user.upload(path)
            user.uploaded()
            jobs.append((user, path, *asked[(number + i) % 3]))
        for user, _, task, form in jobs:
            user.start(task, form)
        for user, path, task, form in jobs:
            user.finish(task)
            assert user.shows(reference.run(task, str(path), form=form))


# ---------------------------------------------------------------------- the network, keyboards, phones


def test_the_service_talks_to_nobody(visit: Callable[..., Watched], service: Service) -> None:
    user = visit(service.url)
    user.page.locator("#samples").get_by_role("button", name="rocket").click()
    user.uploaded()
    user.run("colour")
    talked = service.talk.read_text(encoding="utf-8").splitlines()
    assert talked  # the address it listens at, at least
    assert [line for line in talked if "127.0.0.1" not in line] == []


def test_the_watch_sees_a_request_that_leaves(browser: Any, service: Service) -> None:
    """The test above all can fail: by a request that goes out, and by one that the policy stops."""
    user = Watched(browser.new_context())
    user.page.set_content('<img src="http://192.0.2.1/pixel.png">', wait_until="commit")
    user.page.wait_for_timeout(200)
    assert user.foreign() == ["http://192.0.2.1/pixel.png"]
    user.requests.clear()
    user.open(service.url)
    assert user.foreign() == []
    user.page.evaluate("() => { fetch('http://192.0.2.1/telemetry').catch(() => {}); }")
    user.page.wait_for_timeout(200)
    assert any("192.0.2.1/telemetry" in line for line in user.foreign())
    user.context.close()


def test_everything_has_a_name_and_can_be_reached_by_keys(visit: Callable[..., Watched], service: Service) -> None:
    user = visit(service.url)
    page = user.page
    page.locator("#samples").get_by_role("button", name="coffee").focus()
    page.keyboard.press("Enter")
    user.uploaded()
    for button in page.get_by_role("button").all():
        assert button.evaluate("b => (b.getAttribute('aria-label') || b.innerText).trim()"), button.evaluate("b => b.outerHTML")
    page.locator("#task").get_by_role("radio", name="disks").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    user.finish("colour")


def test_a_phone(visit: Callable[..., Watched], service: Service) -> None:
    user = visit(service.url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    user.page.locator("#samples").get_by_role("button", name="coffee").tap()
    user.uploaded()
    user.run("edges")
    for tab in ("Images", "Masks"):
        user.page.get_by_role("tab", name=tab).tap()
        assert user.page.evaluate("() => document.scrollingElement.scrollWidth") <= 360
