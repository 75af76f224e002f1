"""Somebody with a browser at the page of a service."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image, ImageChops
from web_bundles import same

expect = pytest.importorskip("playwright.sync_api").expect


STEP = """() => {
    const one = document.activeElement, ring = () => [one, one.closest("label"), one.closest("figure")].filter(Boolean)
        .flatMap(element => ["", "::after"].map(pseudo => getComputedStyle(element, pseudo)))
        .map(style => `${style.outline} ${style.boxShadow}`).join();
    const again = window.walked.has(one), shown = one.matches("[type=file], [type=radio]") ? one.closest("label") : one;
    window.walked.add(one);
    const box = shown.getBoundingClientRect(), top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const before = ring();
    one.blur();
    const ringed = ring() !== before;
    one.focus();
    return {again, ringed, covered: !(shown.contains(top) || top?.contains(shown))};
}"""
"""Of what has the keyboard's focus: whether it had it before, has a ring for it, and has something lying on it."""


class User:
    """Somebody with a browser of their own, whose every request is written down."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.requests: list[str] = []
        self.console: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda error: self.console.append(f"uncaught: {error.error}"))
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)

    def foreign(self) -> list[str]:
        """Requests that leave the machine, attempts that the page's policy stopped, and errors of the script."""
        parts = [urlsplit(url) for url in self.requests]
        left = [part.geturl() for part in parts if part.scheme not in ("data", "blob") and part.hostname != "127.0.0.1"]
        return left + [line for line in self.console if "Content Security Policy" in line or line.startswith("uncaught: ")]

    def open(self, url: str, *, tasks: bool = True) -> None:
        self.page.goto(url)
        if tasks:
            self.page.locator("#tasks button").first.wait_for()

    def choose(self, name: str, blob: bytes, kind: str = "image/png") -> None:
        self.page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": blob})

    def task(self, name: str, form: str | None = None) -> None:
        """Choose a task, and wait for its result."""
        self.page.locator(f"#tasks button[data-task='{name}']").click()
        if form is not None:
            self.page.locator("#forms").get_by_role("radio", name=form, exact=True).check()
        self.done(name)

    def done(self, name: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(f"{name}: ", timeout=60_000)

    def shown(self, selector: str) -> Image.Image:
        """The pixels of an image as the browser has decoded it."""
        width, height, values = self.page.locator(selector).evaluate(
            """async image => {
                await image.decode();
                const canvas = document.createElement("canvas");
                Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight});
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                return [canvas.width, canvas.height, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
            }"""
        )
        return Image.frombytes("RGBA", (width, height), bytes(values)).convert("RGB")

    def shows(self, selector: str, expected: Image.Image) -> bool:
        return same(self.shown(selector), expected.convert("RGB"))

    def focused(self) -> str:
        """The name of what has the keyboard's focus; none where nothing that can be seen has it."""
        return str(
            self.page.evaluate(
                """() => {
                    const one = document.activeElement;
                    if (one === document.body || !one.checkVisibility()) return "";
                    return one.getAttribute("aria-label") ?? (one.labels?.[0] ?? one).textContent.trim();
                }"""
            )
        )

    def walk(self, most: int = 60) -> list[str]:
        """The names of what Tab reaches, in order. What has the focus is seen: it has a ring then, and nothing lies on it."""
        page, names = self.page, list[str]()
        page.evaluate("window.walked = new Set()")
        page.locator("h1").evaluate("top => { top.tabIndex = -1; top.focus(); }")
        for _ in range(most):
            page.keyboard.press("Tab")
            if not (name := self.focused()):  # the browser's own bar
                break
            found = page.evaluate(STEP)
            if found["again"]:
                break
            assert found == {"again": False, "ringed": True, "covered": False}, name
            names.append(name)
        return names

    def download(self, link: Any) -> tuple[str, Image.Image]:
        """The name and the content of what a link downloads."""
        with self.page.expect_download() as download:
            link.click()
        return download.value.suggested_filename, Image.open(download.value.path())


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return max(high for _, high in ImageChops.difference(one, other.convert("RGB")).getextrema())
