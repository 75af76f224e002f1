"""Teach in a real browser: from what a user drops or chooses there to a task that is used and downloaded."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import skimage.data
from conftest import serving
from PIL import Image
from test_web_teach import Class, room, send  # noqa: F401
from web_bundles import encoded, photo
from web_page import User, expect, largest_difference

import img2img
from img2img.bundle.join import join_bundles
from img2img.bundle.packaged import packaged_bundles
from img2img.web import TeachOptions


def test_teach(visit: Callable[..., User], room: Class) -> None:  # noqa: F811
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page = user.page
        user.choose("photo.png", encoded(photo()))
        user.done("all tasks")
        page.get_by_role("tab", name="Teach").click()
        page.get_by_label("Name").fill("night")
        page.get_by_label("Steps", exact=True).fill("100")
        page.get_by_role("button", name="Teach").click()
        expect(page.get_by_role("alert").filter(has_text="Add images first")).to_be_visible()
        images = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": encoded(photo(seed=n))} for n in range(10)]
        for zone in ("Inputs", "Targets"):
            page.get_by_label(f"{zone}: Files or a zip").set_input_files(images)
            expect(page.get_by_role("group", name=zone)).to_contain_text("10 files")
        page.get_by_role("button", name="Teach").click()
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()
        expect(page.locator("#running-facts")).to_contain_text("50 of 100")
        expect(page.get_by_role("img", name="Held-out images")).to_be_visible()
        expect(page.get_by_role("img", name="Loss by step")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("heading", name="night is stopped")).to_be_visible()
        page.reload()
        page.get_by_role("tab", name="Teach").click()
        page.get_by_role("button", name="Go on").click()
        room.end()
        expect(page.get_by_role("heading", name="night is learned")).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download its file").click()
        assert Path(download.value.path()).read_bytes() == (room.bundle / "tasks" / "night.safetensors").read_bytes()
        page.get_by_role("button", name="Use it now").click()
        user.choose("photo.png", encoded(photo()))
        user.done("night")
        assert user.shows("#after", img2img.load(str(room.bundle)).run("night", photo()))
        assert json.loads((room.folder / "night" / "job.json").read_text())["state"] == "done"
        page.get_by_role("tab", name="Teach").click()
        page.get_by_role("button", name="Teach another").click()
        expect(page.get_by_label("Name")).to_be_visible()


def test_an_upload_is_cancelled_and_what_an_interrupted_one_left_is_discarded_or_learned_from(
    visit: Callable[..., User],
    room: Class,  # noqa: F811
) -> None:
    with serving(room.model, teach=room.options) as url, httpx.Client(base_url=f"{url}/api/v1", timeout=60) as http:
        user = visit(url)
        page = user.page
        page.get_by_role("tab", name="Teach").click()
        page.get_by_role("radio", name="Images → labels").check()
        page.get_by_label("Name").fill("night")
        page.locator("#classes").fill("ground, car")
        page.locator("#values").fill("0, x")
        for zone in ("Images", "Labels"):
            page.get_by_label(f"{zone}: Files or a zip").set_input_files(
                [{"name": "1.png", "mimeType": "image/png", "buffer": b"x"}]
            )
            expect(page.get_by_role("group", name=zone)).to_contain_text("1 file, 1 byte")
        page.get_by_role("button", name="Teach", exact=True).click()
        expect(page.locator("#teach-error")).to_have_text(
            "The label value x is none: expected whole numbers from 0 to 255, such as 0, 255."
        )
        page.locator("#values").fill("0, 255")
        page.route("**/teach/files/**", lambda route: None)  # an upload that does not end
        page.get_by_role("button", name="Teach", exact=True).click()
        expect(page.locator("#teach-status")).to_have_text("Sends 1 of 2 files …")
        page.locator("#cancel-sending").click()
        expect(page.locator("#teach-error")).to_have_text("Cancelled.")
        assert http.get("/teach").json()["job"] is None
        page.get_by_role("button", name="Teach", exact=True).click()
        expect(page.locator("#teach-status")).to_have_text("Sends 1 of 2 files …")
        page.reload()  # in the middle of it
        page.get_by_role("tab", name="Teach").click()
        expect(page.get_by_role("heading", name="night waits for its images")).to_be_visible()
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("#running-message")).to_have_text("Got 0 images as images: expected 10 or more.")
        page.get_by_role("button", name="Discard").click()
        expect(page.get_by_label("Name")).to_be_visible()
        send(http)
        page.get_by_role("tab", name="Teach").click()
        expect(page.locator("#running-facts")).to_contain_text("inputs10targets10")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()


@pytest.mark.slow
def test_a_style_of_ones_own_on_the_starter(visit: Callable[..., User], tmp_path: Path) -> None:
    """A real training, on a copy of the bundle that comes with img2img."""
    join_bundles(tmp_path / "mine", [packaged_bundles()["starter"]])
    with serving(img2img.load(tmp_path / "mine", weights="merged"), teach=TeachOptions(folder=tmp_path / "teach")) as url:
        user = visit(url)
        page = user.page
        page.get_by_role("tab", name="Teach").click()
        page.get_by_role("radio", name="A style").check()
        page.get_by_label("Name").fill("gravel")
        page.get_by_label("Steps", exact=True).fill("10")
        gravel = {"name": "gravel.png", "mimeType": "image/png", "buffer": encoded(Image.fromarray(skimage.data.gravel()))}
        page.get_by_label("Style: Image").set_input_files([gravel])
        page.get_by_role("button", name="Teach").click()
        expect(page.get_by_role("heading", name="gravel is learned")).to_be_visible(timeout=600_000)
        page.get_by_role("button", name="Use it now").click()
        user.choose("photo.png", encoded(photo()))
        user.done("gravel")
        model = img2img.load(tmp_path / "mine")
        assert largest_difference(user.shown("#after"), model.run("gravel", photo())) <= 1
        assert largest_difference(model.run("colour", photo()), img2img.load("starter").run("colour", photo())) == 0
