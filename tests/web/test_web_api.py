"""The HTTP API: its answers are `Model.run`'s to the last pixel, and what it does not take it says."""

import io
import json
import socket
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from colour_profiles import WIDE, grey_profile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from web_bundles import encoded, photo, same
from web_service import API, Slow, error, opened

import img2img
from img2img import InputError
from img2img.data.images.decode import read_image
from img2img.web import Limits
from img2img.web.limits import RefusedError, check_pixels

# ---------------------------------------------------------------------- what it answers


def test_tasks_and_health(http: httpx.Client, reference: Any) -> None:
    content = http.get(f"{API}/tasks").json()
    assert [task["name"] for task in content["tasks"]] == ["disks", "colour", "edges"]
    for task in content["tasks"]:
        info = reference.tasks[task["name"]]
        assert (task["kind"], task["forms"], task["density"]) == (info.kind, list(info.forms), info.density)
    assert content["limits"]["pixels"] == Limits().pixels
    assert content["limits"]["concurrency"] == 2
    assert http.get(f"{API}/health").json() == {"status": "ok", "version": img2img.__version__, "running": 0, "waiting": 0}


def uploads(folder: Path) -> dict[str, Path]:
    """Images of the kinds that differ in how they are decoded."""
    deep = Image.fromarray((np.asarray(photo(mode="L")).astype(np.uint16) * 257) ^ 0x55)
    turned = Image.Exif()
    turned[274] = 6
    palette = photo().quantize(16)
    much = PngInfo()
    much.add_text("log", "words " * 400_000, zip=True)
    files = {
        "rgb.png": encoded(photo()),
        "grey.png": encoded(photo(mode="L")),
        "rgba.png": encoded(Image.merge("RGBA", [*photo().split(), photo(seed=1, mode="L")])),
        "palette.png": encoded(palette, transparency=0),
        "deep.png": encoded(deep),
        "deep.tiff": encoded(deep, "TIFF"),
        "cmyk.tiff": encoded(photo(mode="CMYK"), "TIFF"),
        "turned.jpg": encoded(photo(), "JPEG", exif=turned),
        "photo.webp": encoded(photo(), "WEBP"),
        "photo.bmp": encoded(photo(), "BMP"),
        "moving.gif": encoded(photo(), "GIF", save_all=True, append_images=[photo(seed=2)]),
        "wide.jpg": encoded(photo(), "JPEG", icc_profile=WIDE["adobe"]),
        "wide.tiff": encoded(photo(), "TIFF", icc_profile=WIDE["prophoto"]),
        "wide palette.tiff": encoded(palette, "TIFF", icc_profile=WIDE["prophoto"]),
        "linear.tiff": encoded(deep, "TIFF", icc_profile=grey_profile(1.0)),
        "talkative.png": encoded(photo(), pnginfo=much),
    }
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    return {name: folder / name for name in files}


def test_any_image_gives_what_model_run_gives(http: httpx.Client, reference: Any, tmp_path: Path) -> None:
    for name, path in uploads(tmp_path).items():
        answer = http.post(f"{API}/run/colour", content=path.read_bytes())
        assert same(opened(answer), reference.run("colour", str(path))), name


def test_a_wide_image_is_answered_as_the_same_one_in_srgb(http: httpx.Client) -> None:
    wide = Image.new("RGB", (48, 40), (188, 42, 39))
    answers = [
        np.asarray(opened(http.post(f"{API}/run/colour", content=encoded(image, icc_profile=profile)))).astype(int)
        for image, profile in ((wide, WIDE["adobe"]), (Image.new("RGB", wide.size, (219, 37, 34)), None), (wide, None))
    ]
    assert np.abs(answers[0] - answers[1]).max() <= 2
    assert np.abs(answers[0] - answers[2]).max() > 5


@pytest.mark.parametrize("form", [None, "colours", "labels", "overlay"])
def test_forms(http: httpx.Client, reference: Any, form: str | None) -> None:
    answer = http.post(f"{API}/run/disks", content=encoded(photo()), params={} if form is None else {"form": form})
    expected = reference.run("disks", photo(), form=form)
    assert same(opened(answer), expected)
    assert opened(answer).getpalette() == expected.getpalette()


def test_side_and_time(http: httpx.Client, reference: Any) -> None:
    answer = http.post(f"{API}/run/edges", content=encoded(photo()), params={"side": 64})
    assert same(opened(answer), reference.run("edges", photo(), side=64))
    assert not same(opened(answer), reference.run("edges", photo()))
    assert float(answer.headers["server-timing"].removeprefix("run;dur=")) > 0


def test_a_form_with_a_file(http: httpx.Client, reference: Any) -> None:
    image = encoded(photo(700, 600))  # more than a megabyte is spooled
    answer = http.post(f"{API}/run/colour", files={"image": ("../../etc/passwd", image, "image/png")})
    assert same(opened(answer), reference.run("colour", photo(700, 600)))


def test_all_tasks(http: httpx.Client, reference: Any) -> None:
    answer = http.post(f"{API}/run", content=encoded(photo()))
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}
    expected = reference.run_all(photo())
    assert list(found) == [f"{task}.png" for task in expected]
    assert all(same(found[f"{task}.png"], result) for task, result in expected.items())


def test_scores(classes: Path, local: Callable[..., str]) -> None:
    model = img2img.load(str(classes), weights="merged")
    url = local(model)
    scores = httpx.post(f"{url}{API}/run/birds", content=encoded(photo()), params={"form": "scores"}).json()["scores"]
    expected = model.run("birds", photo(), form="scores")
    assert list(scores.items()) == list(expected.items())
    assert same(opened(httpx.post(f"{url}{API}/run/birds", content=encoded(photo()))), model.run("birds", photo()))


def test_a_preview_shows_what_no_browser_can(http: httpx.Client, tmp_path: Path) -> None:
    files = uploads(tmp_path)
    assert same(opened(http.post(f"{API}/preview", content=files["rgb.png"].read_bytes())), photo())
    assert opened(http.post(f"{API}/preview", content=files["turned.jpg"].read_bytes())).size == (44, 60)
    assert opened(http.post(f"{API}/preview", content=files["deep.tiff"].read_bytes())).mode == "RGB"
    assert "no image" in error(http.post(f"{API}/preview", content=b"x" * 50), 415)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG"])
def test_a_preview_is_upright(http: httpx.Client, tmp_path: Path, kind: str, orientation: int) -> None:
    """Pillow turns TIFFs itself while it reads them, and other formats not."""
    image, exif = photo(60, 40), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned", kind, exif=exif)
    shown = opened(http.post(f"{API}/preview", content=(tmp_path / "turned").read_bytes()))
    assert np.array_equal(np.asarray(shown), read_image(tmp_path / "turned"))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colours_of_16_bits_are_read_as_those_of_a_file(
    bundle: Path, local: Callable[..., str], tmp_path: Path, ending: str
) -> None:
    """Of a camera of 12 bits: Pillow keeps the upper 8 of 16, which are almost black."""
    model = img2img.load(bundle, weights="merged")
    model.network.state("edges").info["white"] = 4095
    deep = np.kron(np.random.default_rng(0).integers(0, 4096, (6, 6, 3), dtype=np.uint16), np.ones((10, 10, 1), np.uint16))
    file = tmp_path / f"deep.{ending}"
    cv2.imwrite(str(file), deep)
    url, expected = local(model), model.run("edges", file)
    answer = httpx.post(f"{url}{API}/run/edges", content=file.read_bytes(), timeout=60)
    assert same(opened(answer), expected)
    assert same(model.run("edges", file.read_bytes()), expected)
    assert same(Image.fromarray(model.run("edges", deep[..., ::-1])), expected)
    with pytest.raises(InputError, match="Pillow keeps 8, and white=4095 cannot be applied"):
        model.run("edges", Image.open(file))
    assert same(model.run("colour", Image.open(file)), model.run("colour", file)), "without a white both are as dark"


def test_samples(http: httpx.Client) -> None:
    content = http.get(f"{API}/tasks").json()
    assert content["samples"] == ["coffee", "astronaut", "chelsea", "rocket", "landscape", "shapes"]
    sample = opened(http.get(f"{API}/samples/landscape"))
    assert sample.size == (256, 256)
    assert "no sample 'odd'" in error(http.get(f"{API}/samples/odd"), 404)
    assert [len(task["colours"]) for task in content["tasks"]] == [3, 0, 0]
    assert content["teaches"] is False


def test_the_figures_of_the_masks(http: httpx.Client) -> None:
    figures = http.get(f"{API}/masks").json()["figures"]
    assert figures == {
        "density": "Zeroed weights of each task's mask, by layer",
        "similarity": "Ratio of equal values of every two tasks' masks",
    }
    for name in figures:
        answer = http.get(f"{API}/masks/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
        assert b"<svg" in answer.content
        assert b"<script" not in answer.content
    assert "no figure 'odd'" in error(http.get(f"{API}/masks/odd"), 404)


def test_many_at_once_do_not_mix(http: httpx.Client, reference: Any) -> None:
    asked = [(("disks", "colour", "edges")[i % 3], photo(40 + i, 50, seed=i)) for i in range(18)]

    def ask(task: str, image: Image.Image) -> Image.Image:
        return opened(http.post(f"{API}/run/{task}", content=encoded(image)))

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: ask(*one), asked))
    for (task, image), answer in zip(asked, answers, strict=True):
        assert same(answer, reference.run(task, image))


def test_it_describes_itself(http: httpx.Client) -> None:
    paths = http.get(f"{API}/openapi.json").json()["paths"]
    names = ("health", "tasks", "tasks/{name}", "run/{task}", "run", "preview", "samples/{name}", "masks", "masks/{name}")
    assert set(paths) == {f"{API}/{name}" for name in names}
    assert "multipart/form-data" in paths[f"{API}/run"]["post"]["requestBody"]["content"]


# ---------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("run/birds", 404, "no task 'birds'"),
        ("run/disks?form=odd", 422, "disks gives colours, labels, overlay"),
        ("run/disks?side=0", 422, "side: input should be greater than"),
        ("run/disks?side=wide", 422, "side: input should be a valid integer"),
        ("run/disks?side=6000", 413, "6000: expected 24,000,000 at most"),
        ("walk/disks", 404, "nothing at /api/v1/walk/disks"),
    ],
)
def test_wrong_requests(http: httpx.Client, path: str, status: int, said: str) -> None:
    assert said in error(http.post(f"{API}/{path}", content=encoded(photo())), status)


@pytest.mark.parametrize(
    ("blob", "status", "said"),
    [
        (b"", 422, "no image came"),
        (b"not an image" * 100, 415, "no image that can be read: expected JPEG"),
        (encoded(photo(300, 300))[:5000], 422, "the image is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 415, "no image that can be read"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 415, "no image"),
        (encoded(Image.new("F", (9, 9)), "TIFF"), 422, "float pixels"),
        (encoded(Image.new("1", (6000, 5000))), 413, "30,000,000: expected 24,000,000 at most"),
        (encoded(Image.new("1", (60_000, 4))), 413, "it is very thin"),
        (encoded(Image.new("1", (20_000, 20_000))), 413, "too many pixels"),
    ],
)
def test_wrong_images(http: httpx.Client, blob: bytes, status: int, said: str) -> None:
    assert said in error(http.post(f"{API}/run/colour", content=blob), status)


def test_a_form_without_the_field(http: httpx.Client) -> None:
    assert "field 'image'" in error(http.post(f"{API}/run/colour", files={"photo": encoded(photo())}), 422)
    assert "field 'image'" in error(http.post(f"{API}/run/colour", data={"image": "x"}, files={"a": b"1"}), 422)
    many = [("image", encoded(photo())) for _ in range(3)]
    assert "too many files" in error(http.post(f"{API}/run/colour", files=many), 400)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_many_bytes_are_refused_while_they_come(local: Callable[..., str], reference: Any, chunked: bool) -> None:
    url = local(reference, upload_bytes=100_000)
    sent = 0

    def body() -> Any:
        nonlocal sent
        for _ in range(30):  # 3 MB, ten times what is taken
            sent += 100_000
            yield bytes(100_000)

    content: Any = body() if chunked else bytes(250_000)
    try:
        answer = httpx.post(f"{url}{API}/run/colour", content=content)
        assert "too many bytes: expected 100,000 at most" in error(answer, 413)
    except httpx.WriteError:  # it was not read to the end
        assert chunked
    assert httpx.post(f"{url}{API}/run/colour", content=encoded(photo())).status_code == 200


def test_a_little_too_much_is_told_however_it_is_sent(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, upload_bytes=100_000)
    for content in (bytes(100_001), bytes(300_000), iter([bytes(100_000)] * 3)):
        assert "too many bytes" in error(httpx.post(f"{url}{API}/run/colour", content=content), 413)
    answer = httpx.post(f"{url}{API}/run/colour", files={"image": bytes(100_001)})
    assert "too many bytes" in error(answer, 413)


def test_an_image_that_does_not_arrive(local: Callable[..., str], reference: Any) -> None:
    url = local(reference, upload_seconds=1)
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":")[-1])), timeout=20) as slow:
        headers = "Host: localhost\r\nConnection: close\r\nContent-Length: 1000"
        slow.sendall(f"POST {API}/run/colour HTTP/1.1\r\n{headers}\r\n\r\nabc".encode())
        answer = b"".join(iter(lambda: slow.recv(65_536), b"")).decode()
    assert answer.startswith("HTTP/1.1 408")
    assert "did not arrive within 1 s" in answer
    assert httpx.get(f"{url}{API}/health").json()["waiting"] == 0


def test_more_than_may_wait_are_told_so(local: Callable[..., str], reference: Any) -> None:
    slow = Slow(reference)
    url = local(slow, concurrency=1, queue=1)

    def ask() -> httpx.Response:
        return httpx.post(f"{url}{API}/run/colour", content=encoded(photo()), timeout=60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask)
        assert slow.running.acquire(timeout=20)
        second = pool.submit(ask)
        while (health := httpx.get(f"{url}{API}/health").json())["waiting"] == 0:
            pass
        assert (health["running"], health["waiting"]) == (1, 1)
        third = ask()
        assert "busy: 1 images run and 1 wait" in error(third, 503)
        assert third.headers["retry-after"] == "2"
        slow.go.set()
        assert all(same(opened(answer.result()), reference.run("colour", photo())) for answer in (first, second))
    assert ask().status_code == 200


class Broken(Slow):
    def run(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("secret: /home/someone/bundle")


def test_a_failure_tells_nothing_of_the_machine(
    local: Callable[..., str], reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = local(Broken(reference))
    said = error(httpx.post(f"{url}{API}/run/colour", content=encoded(photo())), 500)
    assert said == "the service failed on this image; its log says why"
    assert "secret" in caplog.text
    assert httpx.get(f"{url}{API}/health").json()["running"] == 0


def test_thin_images_count_as_wider_than_they_are() -> None:
    limits = Limits(pixels=1_000_000)
    for size in ((1000, 1000), (128, 7812), (1, 61)):
        check_pixels(size, None, limits)
    for size, side in (((1001, 1000), None), ((1, 62), None), ((100, 100), 1001)):
        with pytest.raises(RefusedError) as refused:
            check_pixels(size, side, limits)
        assert refused.value.status == 413


@pytest.mark.parametrize("name", ["upload_bytes", "pixels", "concurrency", "queue", "upload_seconds"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(img2img.InputError, match=f"{name}=0: expected 1 or more"):
        Limits(**{name: 0})


def test_json_of_errors_is_utf8(http: httpx.Client) -> None:
    answer = http.post(f"{API}/run/%C3%BCber", content=b"x")
    assert "'über'" in json.loads(answer.content)["error"]
