"""Teach in a real browser: from what a user drops or chooses there to a task that is used and downloaded."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
from conftest import serving
from PIL import Image
from test_web_teach import Class, held, room, send, zipped  # noqa: F401
from web_bundles import encoded, photo, same
from web_page import User, expect, largest_difference

import img2img
from img2img.bundle.join import join_bundles
from img2img.bundle.packaged import packaged_bundles
from img2img.web import TeachOptions


def form(user: User, name: str, *, kind: str = "Inputs → results", steps: int = 100) -> Any:
    """The form of Teach, with all but the images filled in."""
    page = user.page
    page.get_by_role("tab", name="Teach").click()
    page.get_by_role("radio", name=kind).check()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Steps", exact=True).fill(str(steps))
    return page


def give(page: Any, zone: str, *files: tuple[str, bytes]) -> None:
    """Choose files for a zone."""
    page.get_by_label(f"{zone}: Files or a zip").set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": blob} for name, blob in files]
    )


def drop(page: Any, zone: str, paths: Sequence[Path]) -> None:
    """Drop files and folders of the disk, as a user drags them from a window of files."""
    target = page.get_by_role("group", name=zone, exact=True)
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    protocol = page.context.new_cdp_session(page)
    at = {"x": box["x"] + box["width"] - 20, "y": box["y"] + 20}
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        protocol.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
    protocol.detach()


def teach(page: Any) -> None:
    page.get_by_role("button", name="Teach", exact=True).click()


def used_and_downloaded(user: User, bundle: Path, name: str, *, timeout: float = 30_000) -> None:
    """Once it is learned: it runs on the page as `Model.run` says, and its file is that of the bundle."""
    page = user.page
    expect(page.get_by_role("heading", name=f"{name} is learned")).to_be_visible(timeout=timeout)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download its file").click()
    assert download.value.suggested_filename == f"{name}.safetensors"
    assert Path(download.value.path()).read_bytes() == (bundle / "tasks" / f"{name}.safetensors").read_bytes()
    page.get_by_role("button", name="Use it now").click()
    user.choose("photo.png", encoded(photo(seed=3)))
    user.done(name)
    expected = img2img.load(str(bundle)).run(name, photo(seed=3))
    assert user.shows("#after", expected)
    assert same(user.download(page.locator("#download"))[1].convert("RGB"), expected.convert("RGB"))


def pairs(count: int = 10) -> dict[str, bytes]:
    """What a zip or a folder of inputs and targets holds."""
    return {f"{role}/{n}.png": encoded(photo(seed=n)) for role in ("inputs", "targets") for n in range(count)}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, blob in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)
    return folder


@pytest.mark.parametrize("way", ["chosen", "dropped"])
def test_a_zip_of_all_images(visit: Callable[..., User], room: Class, tmp_path: Path, way: str) -> None:  # noqa: F811
    """One zip with both folders, which a user who packs a folder gets: a folder around them, and what the system adds."""
    archive = zipped(
        {f"night/{name}": blob for name, blob in pairs().items()} | {"__MACOSX/night/._0.png": b"", "night/.DS_Store": b""}
    )
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page = form(user, "night")
        if way == "chosen":
            give(page, "Inputs", ("all.zip", archive))
        else:
            (tmp_path / "all.zip").write_bytes(archive)
            drop(page, "Inputs", [tmp_path / "all.zip"])
        expect(page.get_by_role("group", name="Inputs")).to_contain_text("1 file, ")
        teach(page)
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()
        assert held(room.folder / "night" / "data") == sorted(pairs())
        room.end()
        used_and_downloaded(user, room.bundle, "night")
        assert not (room.folder / "night" / "data").exists()


def test_a_dropped_folder_of_more_files_than_a_browser_lists_at_once(
    visit: Callable[..., User],
    room: Class,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A browser lists a hundred files at a time."""
    image = encoded(photo(8, 8))
    names = [f"{role}/day/{n:03}.png" for role in ("inputs", "targets") for n in range(103)]
    folder = written(tmp_path / "night pictures", dict.fromkeys(names, image) | {"readme.txt": b"x", "inputs/.hidden.png": b"x"})
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page = form(user, "night")
        drop(page, "Targets", [folder])
        expect(page.get_by_role("group", name="Targets")).to_contain_text("206 files, ")
        teach(page)
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible(timeout=60_000)
        assert held(room.folder / "night" / "data") == sorted(names)
        (command,) = room.commands
        assert command[command.index("--inputs") + 1] == "data/inputs/day"
        room.end()
        used_and_downloaded(user, room.bundle, "night")


@pytest.mark.parametrize("names", [("inputs", "targets"), ("a", "b")], ids=["of-roles", "of-other-names"])
def test_two_folders_dropped_at_once_keep_their_names(
    visit: Callable[..., User],
    room: Class,  # noqa: F811
    tmp_path: Path,
    names: tuple[str, str],
) -> None:
    """Files of the same name in them do not take each other's place."""
    folders = [written(tmp_path / name, {f"{n}.png": encoded(photo(8, 8)) for n in range(10)}) for name in names]
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page = form(user, "night")
        drop(page, "Inputs", folders)
        expect(page.get_by_role("group", name="Inputs")).to_contain_text("20 files, ")
        drop(page, "Inputs", folders)  # again: they are there already
        expect(page.get_by_role("group", name="Inputs")).to_contain_text("20 files, ")
        if names == ("a", "b"):
            drop(page, "Targets", folders)
        teach(page)
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()
        files = held(room.folder / "night" / "data")
        roles = ("inputs", "targets")
        assert len(files) == (20 if names == roles else 40)
        assert {Path(file).parent.as_posix() for file in files} == (
            set(roles) if names == roles else {f"{role}/{name}" for role in roles for name in names}
        )


def test_images_and_labels_of_chosen_folders(visit: Callable[..., User], room: Class, tmp_path: Path) -> None:  # noqa: F811
    image = encoded(photo())
    photos, masks = (written(tmp_path / name, {f"{n}.png": image for n in range(10)}) for name in ("my photos", "my labels"))
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page = form(user, "night", kind="Images → labels")
        page.get_by_role("textbox", name="Classes").fill("ground, car,")
        page.get_by_label("Label values").fill("0, 255")
        page.get_by_label("Images: A folder").set_input_files(photos)
        page.get_by_label("Labels: A folder").set_input_files(masks)
        for zone in ("Images", "Labels"):
            expect(page.get_by_role("group", name=zone, exact=True)).to_contain_text("10 files, ")
        teach(page)
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()
        assert held(room.folder / "night" / "data") == sorted(
            f"{role}/{n}.png" for role in ("images", "labels") for n in range(10)
        )
        data = json.loads((room.folder / "night" / "task.yaml").read_text())["data"]
        assert (data["classes"], data["values"]) == (["ground", "car"], [0, 255])
        room.end()
        used_and_downloaded(user, room.bundle, "night")


def test_what_cannot_be_learned_from_is_said_and_the_form_stays_usable(visit: Callable[..., User], room: Class) -> None:  # noqa: F811
    options = TeachOptions(folder=room.folder, upload_bytes=300_000)
    with serving(room.model, teach=options, upload_bytes=100_000) as url:
        user = visit(url)
        page = form(user, "night")
        failure = page.locator("#teach-error")
        inputs = {name: blob for name, blob in pairs().items() if name.startswith("inputs")}
        large = {f"inputs/{n}.png": encoded(photo()) + bytes(60_000) for n in range(10)}
        for files, said in (
            ([("all.zip", b"no zip at all")], "all.zip: These bytes are no zip"),
            ([("all.zip", zipped(pairs())[:-40])], "all.zip: These bytes are no zip"),
            ([("all.zip", zipped(inputs))], "Got 0 images as targets: expected 10 or more."),
            ([("all.zip", zipped({"../up.png": b""}))], "is no name of an image"),
            ([("1.png", b"text")], "no image that can be read"),
            ([("1.png", encoded(photo()) + bytes(3_000_000))], "1.png has 3.00 MB: expected 100 kB at most"),
            ([("all.zip", zipped(large)), ("b.zip", b"")], "expected 300,000 for all images"),
            ([("all.zip", bytes(2_000_000))], "all.zip has 2.00 MB: expected 300 kB at most"),
            ([("readme.txt", b"text")], "There is no image and no zip in this"),
        ):
            give(page, "Inputs", *files)
            if not files[0][0].endswith(".txt"):
                teach(page)
            expect(failure).to_contain_text(said)
            expect(page.get_by_role("button", name="Teach", exact=True)).to_be_enabled()
            if not files[0][0].endswith(".txt"):
                page.get_by_role("button", name="Inputs: Clear").click()
                expect(page.get_by_role("group", name="Inputs")).to_contain_text("what the network will be given")
        give(page, "Inputs", ("all.zip", zipped(pairs())))
        give(page, "Inputs", ("all.zip", zipped(inputs)))
        expect(failure).to_contain_text("There is another all.zip already. Clear first")
        page.get_by_label("Name").fill("colour")
        teach(page)
        expect(failure).to_have_text("There is a task 'colour' already: choose another name.")
        page.get_by_label("Name").fill("night")
        teach(page)
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()
        expect(failure).to_be_hidden()
        room.end("the inputs and the targets differ in size: 3.png")
        expect(page.get_by_role("heading", name="night could not be learned")).to_be_visible()
        expect(page.locator("#running-message")).to_have_text("The inputs and the targets differ in size: 3.png.")
        page.get_by_role("button", name="Discard").click()
        expect(page.get_by_role("group", name="Inputs")).to_contain_text("1 file, ")  # to try again with
        room.control.unlink()
        teach(page)
        expect(page.get_by_role("heading", name="Learns night")).to_be_visible()
        room.end()
        used_and_downloaded(user, room.bundle, "night")


def test_a_service_that_comes_back_while_it_learns(visit: Callable[..., User], room: Class) -> None:  # noqa: F811
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page = form(user, "night")
        give(page, "Inputs", ("all.zip", zipped(pairs())))
        teach(page)
        expect(page.locator("#running-facts")).to_contain_text("50 of 100")
        page.context.set_offline(True)
        expect(page.locator("#running-message")).to_contain_text("cannot be reached")
        page.context.set_offline(False)
        room.end()
        used_and_downloaded(user, room.bundle, "night")


def test_teach_by_keyboard_alone(visit: Callable[..., User], room: Class, tmp_path: Path) -> None:  # noqa: F811
    """No pointer; the focus is never lost, as what had it disappears."""
    (tmp_path / "all.zip").write_bytes(zipped(pairs()))
    with serving(room.model, teach=room.options) as url:
        user = visit(url)
        page, keys = user.page, user.page.keyboard
        page.on("filechooser", lambda _: None)  # watched from the start, so that none is missed

        def go(name: str) -> None:
            for _ in range(40):
                if user.focused() == name:
                    return
                keys.press("Tab")
            raise AssertionError(f"{name} is not reached, but {user.focused()}")

        go("Images")
        keys.press("ArrowRight")
        files = [f"{zone}: {what}" for zone in ("Inputs", "Targets") for what in ("Files or a zip", "A folder")]
        assert user.walk() == ["Teach", "Inputs → results", *files, "Name", "Steps", "Teach"]
        go("Inputs → results")
        keys.press("ArrowRight")
        assert user.focused() == "Images → labels"
        keys.press("ArrowLeft")
        go("Inputs: Files or a zip")
        with page.expect_file_chooser() as chooser:
            keys.press("Enter")
        chooser.value.set_files(tmp_path / "all.zip")
        go("Name")
        keys.type("night")
        go("Steps")
        keys.press("ControlOrMeta+A")
        keys.type("100")
        keys.press("Enter")
        expect(page.get_by_role("heading", name="Learns night")).to_be_focused()
        assert user.walk() == ["Teach", "Stop"]
        for before, heading in (("Stop", "night is stopped"), ("Go on", "Learns night")):
            go(before)
            keys.press("Enter")
            expect(page.get_by_role("heading", name=heading)).to_be_focused()
        go("Stop")
        room.end()
        expect(page.get_by_role("heading", name="night is learned")).to_be_focused()
        assert user.walk() == ["Teach", "Use it now", "Download its file", "Teach another"]
        go("Use it now")
        keys.press("Enter")
        expect(page.locator("#images")).to_be_visible()
        assert user.focused() == "Images"
        keys.press("ArrowRight")
        go("Teach another")
        keys.press("Enter")
        expect(page.get_by_label("Name")).to_have_value("")  # the next task needs a name and images of its own
        expect(page.get_by_role("group", name="Inputs")).not_to_contain_text("1 file")
        assert user.focused() == "Inputs → results"


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


@pytest.mark.slow
def test_a_real_training_from_a_zip_stopped_and_continued(visit: Callable[..., User], tmp_path: Path, bundle: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    images = {f"inputs/{n}.png": photo(60, 50, seed=n) for n in range(10)}
    images |= {name.replace("inputs", "targets"): image.point(lambda value: 255 - value) for name, image in images.items()}
    with serving(img2img.load(str(own), weights="merged"), teach=TeachOptions(folder=tmp_path / "teach")) as url:
        user = visit(url)
        page = form(user, "night", steps=200)
        give(page, "Inputs", ("all.zip", zipped({name: encoded(image) for name, image in images.items()})))
        teach(page)
        step = lambda: int(page.locator("#running-facts dd").first.inner_text().split()[0])  # noqa: E731
        page.wait_for_function("() => parseInt(document.querySelector('#running-facts dd')?.textContent) >= 60", timeout=300_000)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("heading", name="night is stopped")).to_be_visible()
        assert 60 <= step() < 200, "stopped before its end"
        page.get_by_role("button", name="Go on").click()
        used_and_downloaded(user, own, "night", timeout=500_000)
        run = tmp_path / "teach" / "night"
        assert "goes on from its checkpoint, at step " in (run / "log.txt").read_text()
        rows = (run / "run" / "metrics" / "night.csv").read_text().splitlines()
        steps = [int(row.split(",")[0]) for row in rows[1:]]
        assert (steps, steps[-1]) == (sorted(set(steps)), 200), "the log has each step once"


@pytest.mark.slow
def test_a_real_training_from_a_folder_of_images_and_labels(visit: Callable[..., User], tmp_path: Path, bundle: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    folder = tmp_path / "day"
    for n in range(10):
        image = photo(60, 50, seed=n)
        bright = np.asarray(image.convert("L")) > 127
        label = Image.fromarray((255 * bright).astype(np.uint8))
        written(folder, {f"images/{n}.png": encoded(image), f"labels/{n}.png": encoded(label)})
    with serving(img2img.load(str(own), weights="merged"), teach=TeachOptions(folder=tmp_path / "teach")) as url:
        user = visit(url)
        page = form(user, "bright", kind="Images → labels", steps=20)
        page.get_by_role("textbox", name="Classes").fill("dark, bright")
        page.get_by_label("Label values").fill("0, 255")
        drop(page, "Images", [folder])
        teach(page)
        used_and_downloaded(user, own, "bright", timeout=500_000)
        assert page.locator("#legend li").all_inner_texts() == ["dark", "bright"]
