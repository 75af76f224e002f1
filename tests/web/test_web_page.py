"""The page in a real browser: it shows what `Model.run` gives, and asks nobody else for anything."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from conftest import serving
from PIL import Image
from test_web_teach import Class, room  # noqa: F401
from web_bundles import encoded, make_bundle, photo, same
from web_page import User, expect, largest_difference
from web_service import Slow

import img2img
from img2img.inference.conversion import OpenedImages

# ---------------------------------------------------------------------- what it shows


def waiting(visit: Callable[..., User], url: str) -> User:
    """A user at the page of a slow service, whose image the first of three tasks runs on."""
    user = visit(url)
    user.choose("a.png", encoded(photo()))
    expect(user.page.locator("#status")).to_contain_text("disks (1 of 3)")
    return user


def test_all_tasks_and_each_one(visit: Callable[..., User], url: str, reference: Any) -> None:
    user = visit(url)
    page, given = user.page, photo()
    user.choose("my photo.png", encoded(given))
    user.done("all tasks")
    expected = reference.run_all(given)
    expect(page.locator("#gallery figcaption span")).to_have_text(["Input", *expected])
    expect(page.locator("#tasks button").first).to_contain_text("3, one by one")
    for task, result in expected.items():
        name, content = user.download(page.get_by_role("link", name=f"Download {task}"))
        assert name == f"my photo-{task}.png"
        assert same(content, result)
    for task, form in (("colour", None), ("disks", "overlay"), ("disks", "labels")):
        user.task(task, form)
        result = reference.run(task, given, form=form)
        assert user.shows("#after", result), (task, form)
        assert user.shows("#before", given)
        assert same(user.download(page.locator("#download"))[1], result)
        assert page.locator("#legend li").count() == (3 if task == "disks" else 0)
    assert page.get_by_text("a <b>bold</b> class", exact=True).is_visible()  # a class's name is no HTML


def test_the_slider_by_mouse_touch_and_keyboard(visit: Callable[..., User], url: str) -> None:
    user = visit(url, has_touch=True)
    page = user.page
    user.choose("a.png", encoded(photo(300, 200)))
    user.done("all tasks")
    page.get_by_role("button", name="Show colour").click()
    user.done("colour")
    slider = page.get_by_role("slider", name="Share of the input that is shown")
    value = lambda: int(slider.get_attribute("aria-valuenow") or -1)  # noqa: E731
    box = page.locator("#compare").bounding_box()
    assert box is not None

    def at(share: float) -> tuple[float, float]:
        return box["x"] + share * box["width"], box["y"] + box["height"] / 2

    page.mouse.move(*at(0.5))
    page.mouse.down()
    page.mouse.move(*at(0.8))
    page.mouse.up()
    page.mouse.move(*at(0.1))
    assert abs(value() - 80) <= 1
    page.touchscreen.tap(*at(0.25))
    assert abs(value() - 25) <= 1
    slider.focus()
    for key, expected in (("Home", 0), ("ArrowRight", 2), ("PageUp", 12), ("ArrowLeft", 10), ("End", 100), ("ArrowUp", 100)):
        page.keyboard.press(key)
        assert value() == expected, key
    assert slider.get_attribute("aria-valuetext") == "100 % input, 0 % result"
    page.keyboard.press("PageDown")
    clip = page.locator("#before").evaluate("image => getComputedStyle(image).clipPath")
    assert "10%" in clip


def test_the_slider_dragged_by_a_finger(visit: Callable[..., User], url: str) -> None:
    """A finger across the image moves the slider, wherever it began; one along the image scrolls the page."""
    user = visit(url, viewport={"width": 390, "height": 500}, is_mobile=True, has_touch=True)
    page = user.page
    user.choose("a.png", encoded(photo(200, 300)))
    user.done("all tasks")
    user.task("colour")
    slider = page.get_by_role("slider", name="Share of the input that is shown")
    slider.scroll_into_view_if_needed()
    protocol = page.context.new_cdp_session(page)

    def drag(start: tuple[float, float], *there: tuple[float, float]) -> int:
        box = page.locator("#compare").bounding_box()
        for kind, at in [("touchStart", start), *(("touchMove", at) for at in there), ("touchEnd", None)]:
            points = [{"x": box["x"] + at[0] * box["width"], "y": box["y"] + at[1] * box["height"]}] if at else []
            protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        return int(slider.get_attribute("aria-valuenow") or -1)

    before = page.evaluate("scrollY")
    assert abs(drag((0.5, 0.5), (0.6, 0.5), (0.7, 0.51), (0.8, 0.52)) - 80) <= 1
    assert abs(drag((0.3, 0.5), (0.25, 0.5), (0.1, 0.48)) - 10) <= 1
    assert drag((0.3, 0.5), (0.1, 0.5), (-0.2, 0.5)) == 0, "beyond the image's edge"
    assert page.evaluate("scrollY") == before
    drag((0.5, 0.4), (0.5, 0.3), (0.5, 0.2), (0.5, 0.05))
    page.wait_for_function("before => scrollY > before", arg=before)


def test_samples_paste_drop_and_files_that_no_browser_shows(visit: Callable[..., User], url: str, reference: Any) -> None:
    user = visit(url, permissions=["clipboard-read", "clipboard-write"])
    page = user.page
    page.get_by_role("button", name="landscape").click()
    user.done("all tasks")
    user.task("colour")
    assert user.shows("#after", reference.run("colour", user.shown("#before")))
    page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), {width: 30, height: 20});
            const context = canvas.getContext("2d");
            context.fillStyle = "white";
            context.fillRect(0, 0, 30, 20);
            context.fillStyle = "black";
            context.fillRect(5, 5, 9, 9);
            const blob = await new Promise(resolve => canvas.toBlob(resolve));
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }"""
    )
    page.get_by_role("button", name="Paste", exact=True).click()
    expect(page.locator("#before")).to_have_js_property("naturalWidth", 30)
    user.done("colour")
    assert user.shows("#after", reference.run("colour", user.shown("#before")))
    deep = Image.effect_noise((50, 40), 60).convert("I;16").point(lambda value: value * 200)
    user.choose("deep.tiff", encoded(deep, "TIFF"), "image/tiff")
    expect(page.locator("#before")).to_have_js_property("naturalWidth", 50)
    user.done("colour")
    assert user.shows("#after", reference.run("colour", deep))
    page.evaluate(
        """async blob => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(blob)], "dropped.png", {type: "image/png"}));
            const drop = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
            document.querySelector("#stage").dispatchEvent(drop);
        }""",
        list(encoded(photo(44, 33))),
    )
    expect(page.locator("#before")).to_have_js_property("naturalWidth", 44)
    user.done("colour")
    assert user.shows("#after", reference.run("colour", photo(44, 33)))


NASTY = [
    "a\n<img src=x onerror=\"document.title='hacked'\">",
    "b </li><script>document.title='hacked'</script>",
    "**c** &lt;b&gt;",
]


def test_scores_and_names_that_look_like_html(visit: Callable[..., User], classes: Path, tmp_path: Path) -> None:
    model = img2img.load(str(classes), weights="merged")
    with serving(model) as url:
        user = visit(url)
        user.choose("photo.png", encoded(photo()))
        user.done("birds")
        lines = user.page.locator("#scores li").all_inner_texts()
        scores = model.run("birds", photo(), form="scores")
        assert [line.split()[0] for line in lines] == list(scores)
        assert [line.split()[-1] for line in lines] == [f"{100 * score:.0f}%" for score in scores.values()]
        expect(user.page.locator("#compare")).to_have_class("input-only")
        expect(user.page.locator("#download")).to_be_hidden()
    backbone = {"kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}
    bundle = make_bundle(tmp_path / "nasty", backbone, {"disks": {"kind": "segmentation", "classes": NASTY}})
    with serving(img2img.load(str(bundle), weights="merged")) as url:
        user = visit(url)
        user.choose("<b>.png", encoded(photo()))
        user.done("disks")
        assert user.page.locator("#legend li span").all_text_contents() == NASTY
        assert user.page.locator("#legend").locator("img, script, b").count() == 0
        assert user.page.title() == "img2img"


def test_a_classification_among_all_tasks_says_the_most_probable_class(visit: Callable[..., User], tmp_path: Path) -> None:
    task = {"kind": "classification", "classes": ["robin", "wren", "owl"]}
    bundle = make_bundle(tmp_path / "two", {"kind": "vgg_small", "width": 0.0625, "hidden": []}, {"birds": task, "nests": task})
    model = img2img.load(str(bundle), weights="merged")
    with serving(model) as url:
        user = visit(url)
        user.choose("photo.png", encoded(photo()))
        user.done("all tasks")
        for name in ("birds", "nests"):
            most, score = next(iter(model.run(name, photo(), form="scores").items()))
            expect(user.page.get_by_role("button", name=f"Show {name}")).to_have_text(f"{most} {100 * score:.0f}%")


def test_the_masks(visit: Callable[..., User], url: str) -> None:
    user = visit(url)
    page = user.page
    page.get_by_role("tab", name="Masks").click()
    for figure in ("Zeroed weights of each task's mask, by layer", "Ratio of equal values of every two tasks' masks"):
        image = page.get_by_role("img", name=figure)
        image.wait_for()
        expect(image).not_to_have_js_property("naturalWidth", 0)
    rows = page.locator("#table tbody tr").all_inner_texts()
    assert [row.split()[:2] for row in rows] == [["disks", "segmentation"], ["colour", "colourisation"], ["edges", "edges"]]
    assert "49.6 % zeroed" in rows[1]


# ---------------------------------------------------------------------- what it does not take


def test_errors_in_plain_words_and_the_page_goes_on(visit: Callable[..., User], merged: Any, reference: Any) -> None:
    broken = {
        "text.png": (b"not an image", "These 12 bytes are no image that can be read"),
        "half.png": (encoded(photo(300, 300))[:5000], "the image is damaged"),
        "wide.png": (encoded(Image.new("1", (400, 300))), "expected 100,000 at most"),
        "long.png": (encoded(photo()) + bytes(200_000), "long.png has 204 kB: expected 150 kB at most"),
    }
    with serving(merged, pixels=100_000, upload_bytes=150_000) as url:
        user = visit(url)
        page = user.page
        for name, (blob, said) in broken.items():
            user.choose(name, blob)
            expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible(timeout=60_000)
        user.choose("whole.png", encoded(photo()))
        user.done("all tasks")
        expect(page.locator("#error")).to_be_hidden()
        user.task("colour")
        assert user.shows("#after", reference.run("colour", photo()))


def test_a_task_that_fails_has_no_result_and_the_others_have_theirs(visit: Callable[..., User], url: str, reference: Any) -> None:
    user = visit(url)
    page = user.page
    page.route("**/run/colour?*", lambda route: route.fulfill(status=413, json={"error": "too large for this one"}))
    user.choose("a.png", encoded(photo()))
    expect(page.locator("#error")).to_have_text("colour: Too large for this one.")
    expect(page.get_by_role("button", name="Show colour")).to_have_text("no result")
    expect(page.get_by_role("link", name="Download edges")).to_be_visible()
    page.unroute("**/run/colour?*")
    user.task("colour")
    assert user.shows("#after", reference.run("colour", photo()))


def test_cancel_and_a_service_that_has_gone(visit: Callable[..., User], reference: Any) -> None:
    slow = Slow(reference)
    with serving(slow) as url:
        user = waiting(visit, url)
        page = user.page
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_have_text("Cancelled.")
        slow.go.set()
        until = time.monotonic() + 20
        while httpx.get(f"{url}/api/v1/health").json()["running"] and time.monotonic() < until:
            time.sleep(0.05)
        user.task("colour")
        assert user.shows("#after", reference.run("colour", photo()))
    page.locator("#tasks button[data-task='edges']").click()
    expect(page.get_by_role("alert").filter(has_text="cannot be reached")).to_be_visible()


def test_a_service_without_tasks_says_so_and_can_be_taught(visit: Callable[..., User], room: Class) -> None:  # noqa: F811
    token = "a token of this test"
    with serving(room.model, teach=room.options, token=token) as url:
        for task in ("colour", "edges", "disks"):
            answer = httpx.delete(f"{url}/api/v1/tasks/{task}", headers={"authorization": f"Bearer {token}"}, timeout=60)
            assert answer.status_code == 200, answer.text
        user = visit(url, tasks=False)
        page = user.page
        expect(page.locator("#status")).to_have_text("This service has no tasks yet.")
        expect(page.locator("#limits")).to_contain_text("Up to 24 megapixels")
        user.choose("photo.png", encoded(photo()))
        expect(page.locator("#after")).to_have_js_property("naturalWidth", photo().width)
        page.get_by_role("tab", name="Teach").click()
        expect(page.get_by_label("Name")).to_be_visible()
        expect(page.locator("#error")).to_be_hidden()


# ---------------------------------------------------------------------- the network, keyboards, phones


def test_the_keyboards_focus_stays_in_the_gallery_and_goes_to_the_slider(visit: Callable[..., User], reference: Any) -> None:
    slow = Slow(reference)
    with serving(slow) as url:
        user = waiting(visit, url)
        page = user.page
        tile = page.get_by_role("button", name="Show colour")
        tile.focus()
        slow.go.set()
        user.done("all tasks")
        expect(tile).to_be_focused()
        expect(tile.locator("img")).to_be_visible()
        page.keyboard.press("Enter")
        expect(page.get_by_role("slider", name="Share of the input that is shown")).to_be_focused()
        user.done("colour")
        assert user.shows("#after", reference.run("colour", photo()))


def test_the_whole_page_by_keyboard_alone(visit: Callable[..., User], url: str, reference: Any) -> None:
    user = visit(url)
    page, keys = user.page, user.page.keyboard
    page.on("filechooser", lambda _: None)  # watched from the start, so that none is missed
    samples = ["coffee", "astronaut", "chelsea", "rocket", "landscape", "shapes"]
    tasks = ["all tasks", "disks, segmentation", "colour, colourisation", "edges, edges"]
    assert user.walk() == ["Images", "Choose image", "Paste", *samples, *tasks]
    page.get_by_role("button", name="landscape").focus()
    keys.press("Enter")
    user.done("all tasks")
    tiles = [name for task in ("disks", "colour", "edges") for name in (f"Show {task}", f"Download {task}")]
    assert user.walk() == ["Images", "Choose image", "Paste", *samples, *tasks, *tiles]
    page.get_by_role("button", name="disks, segmentation").focus()
    keys.press("Space")
    user.done("disks")
    assert user.walk()[-3:] == ["Share of the input that is shown", "colours", "Download"]
    page.get_by_role("radio", name="colours").focus()
    keys.press("ArrowRight")
    user.done("disks")
    form = user.focused()
    expect(page.locator("#status")).to_contain_text("disks: ")
    assert user.shows("#after", reference.run("disks", user.shown("#before"), form=form))
    page.locator("#file").focus()
    with page.expect_file_chooser():
        keys.press("Space")
    page.get_by_role("tab", name="Images").focus()
    keys.press("ArrowLeft")
    assert (user.focused(), user.walk()[:1]) == ("Masks", ["Masks"])
    page.get_by_role("img", name="Zeroed weights of each task's mask, by layer").wait_for()


class Watched:
    """A model that remembers the images which it was given."""

    def __init__(self, model: Any) -> None:
        self._model, self.given = model, list[OpenedImages]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, task: str, image: Any, **options: Any) -> Any:
        self.given.append(image)
        return self._model.run(task, image, **options)


def test_a_large_photo_is_tried_small_and_made_at_its_full_size_on_request(visit: Callable[..., User], reference: Any) -> None:
    model, given = Watched(reference), photo(1500, 120)
    with serving(model) as url:
        user = visit(url)
        page = user.page
        user.choose("large.png", encoded(given))
        user.done("all tasks")
        expect(page.locator("#status")).to_contain_text("1024 × 82 pixels in ")
        assert page.get_by_role("radio", name="1024 × 82, quick").is_checked()
        small = model.given[0]
        assert {images.size for images in model.given} == {(82, 1024)}
        sent = Image.fromarray(small.values.reshape(3, 82, 1024).permute(1, 2, 0).numpy())
        assert largest_difference(sent, given.resize((1024, 82), Image.Resampling.BOX)) < 10, "by another filter"
        user.task("disks", "overlay")
        assert user.shows("#after", reference.run("disks", small, form="overlay"))
        assert user.shows("#before", given)
        asked = len(model.given)
        page.get_by_role("radio", name="1500 × 120, full size").check()
        expect(page.locator("#status")).to_contain_text("disks: 1500 × 120 pixels in ")
        expected = reference.run("disks", given, form="overlay")
        assert user.shows("#after", expected)
        assert same(user.download(page.locator("#download"))[1], expected)
        page.get_by_role("radio", name="1024 × 82, quick").check()
        expect(page.locator("#status")).to_contain_text("disks: 1024 × 82 pixels in ")
        assert len(model.given) == asked + 1, "what was made once is kept"
        user.choose("small.png", encoded(photo()))
        user.done("disks")
        expect(page.locator("#sizes")).to_be_hidden()
        assert user.foreign() == []


def test_the_bar_and_the_forms_are_in_view(visit: Callable[..., User], reference: Any) -> None:
    """Progress and "Cancel" are seen while it runs, without scrolling, and so are a segmentation's forms."""
    slow = Slow(reference)
    for width, height in ((1280, 800), (390, 700)):
        slow.go.clear()
        with serving(slow) as url:
            user = visit(url, viewport={"width": width, "height": height})
            page = user.page
            user.choose("a.png", encoded(photo(300, 400)))
            expect(page.locator("#status")).to_contain_text("disks (1 of 3)")
            tile = page.get_by_role("button", name="Show disks")
            room_for_it = tile.bounding_box()
            expect(tile).to_have_text("runs …")
            for name in ("#status", "#progress", "#cancel"):
                expect(page.locator(name)).to_be_in_viewport(ratio=1)
            assert page.locator("#bar").bounding_box()["height"] < 70, "one row, also on a phone"
            slow.go.set()
            user.done("all tasks")
            assert abs(tile.bounding_box()["height"] - room_for_it["height"]) <= 1, "nothing moves as a result comes"
            user.page.get_by_role("button", name="Show edges").click()
            user.done("edges")
            button = page.locator("#tasks button[data-task='edges']").bounding_box()
            assert button["x"] >= 0
            assert button["x"] + button["width"] <= width, "the row of tasks has moved to it"
            user.task("disks")
            if width > 1000:
                expect(page.get_by_role("radiogroup", name="Form")).to_be_in_viewport(ratio=1)
            expect(page.locator("#download")).to_be_in_viewport(ratio=1)


def test_the_watch_sees_a_request_that_leaves(browser: Any, url: str) -> None:
    """What all tests above end with can fail: by a request that goes out, and by one that the policy stops."""
    user = User(browser.new_context())
    user.page.set_content('<img src="http://192.0.2.1/pixel.png">', wait_until="commit")
    user.page.wait_for_timeout(200)
    assert user.foreign() == ["http://192.0.2.1/pixel.png"]
    user.requests.clear()
    user.open(url)
    assert user.foreign() == []
    user.page.evaluate("() => { fetch('http://192.0.2.1/telemetry').catch(() => {}); document.body.style.color = 'red'; }")
    user.page.wait_for_timeout(200)
    assert any("192.0.2.1/telemetry" in line for line in user.foreign())
    user.context.close()


def test_a_phone_and_names_for_everything(visit: Callable[..., User], room: Class) -> None:  # noqa: F811
    with serving(room.model, teach=room.options) as url:
        user = visit(url, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
        page = user.page
        page.get_by_role("button", name="shapes").tap()
        user.done("all tasks")
        for name in ("Images", "Teach", "Masks"):
            page.get_by_role("tab", name=name).tap()
            assert page.evaluate("() => document.scrollingElement.scrollWidth") <= 360, name
        page.get_by_role("tab", name="Masks").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Images")).to_have_attribute("aria-selected", "true")
        page.locator("#tasks button[data-task='disks']").focus()
        page.keyboard.press("Enter")
        user.done("disks")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, a[href], input, img, [role=slider], meter, progress")]
                .filter(one => !one.getAttribute("aria-label") && one.getAttribute("alt") == null && !one.labels?.length
                    && !one.textContent.trim()).map(one => one.outerHTML)"""
        )
        assert nameless == []


def test_the_starter(visit: Callable[..., User]) -> None:
    """The bundle that comes with img2img, as `img2img serve` has it."""
    model = img2img.load("starter")
    with serving(img2img.load("starter", weights="merged")) as url:
        user = visit(url)
        user.choose("photo.png", encoded(photo()))
        user.done("all tasks")
        for task in ("colour", "clothes", "enlarge"):
            user.task(task)
            # The merged weights of masks that scale differ in their last bit, which may turn a rounding.
            assert largest_difference(user.shown("#after"), model.run(task, photo())) <= 1, task
        expect(user.page.locator("#status")).to_contain_text("enlarge: 60 × 44 → 120 × 88 pixels in ")
        user.page.get_by_role("tab", name="Masks").click()
        expect(user.page.locator("#table tbody tr")).to_have_count(len(model.tasks))
