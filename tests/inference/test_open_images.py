"""What cannot be opened, one of many or alone: one message that says which, and the others when asked for."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import img2img
from img2img import InputError
from img2img.errors import OutOfMemoryError
from img2img.inference import Model
from img2img.inference.conversion import open_input

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return img2img.load(bundle)


def _png() -> bytes:
    blob = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(blob, "PNG")
    return blob.getvalue()


def _truncated() -> Image.Image:
    return Image.open(io.BytesIO(_png()[:3000]))


def _closed() -> Image.Image:
    image = Image.fromarray(RGB)
    image.close()
    return image


def _closed_before_it_was_read() -> Image.Image:
    file = io.BytesIO(_png())
    image = Image.open(file)
    file.close()
    return image


def _broken() -> Image.Image:
    blob = bytearray(_png())
    blob[60:400] = bytes(340)
    return Image.open(io.BytesIO(bytes(blob)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_truncated, "damaged or was closed"),
        (_closed, "damaged or was closed"),
        (_closed_before_it_was_read, "damaged or was closed"),
        (_broken, "damaged or was closed"),
        (lambda: Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (lambda: Image.new("L", (5, 0)), "5 x 0 pixels"),
        (lambda: Image.new("F", (5, 5)), "float pixels"),
        (lambda: Image.new("I", (5, 5)), "32-bit pixels"),
    ],
)
def test_images_without_sound_pixels(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_input(make())


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I;16B"]
)
def test_every_other_mode_is_an_image(mode: str) -> None:
    image = Image.new(mode, (9, 6))
    assert open_input(image).size == (6, 9)


def test_an_image_too_large_for_its_file_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("img2img.inference.conversion.MAX_PIXELS", 5000)
    image = Image.open(io.BytesIO(_png()))
    monkeypatch.setattr(image, "load", lambda: pytest.fail("decoded"))
    with pytest.raises(InputError, match="90 x 60 pixels: expected at most 5,000"):
        open_input(image)


def test_arrays_and_tensors_of_every_layout() -> None:
    expected = open_input(RGB[::-1, ::-1].copy()).values
    assert torch.equal(open_input(RGB[::-1, ::-1]).values, expected), "negative strides"
    assert torch.equal(open_input(np.asfortranarray(RGB)).values, open_input(RGB).values)
    wide = RGB.astype(np.uint16) * 257
    assert torch.equal(open_input(wide.astype(">u2")).values, open_input(wide).values), "the other byte order"
    frozen = RGB.copy()
    frozen.flags.writeable = False
    assert torch.equal(open_input(frozen).values, open_input(RGB).values)
    tensor = torch.rand(3, 6, 9)
    for given in (tensor.clone().requires_grad_(), tensor.mT.contiguous().mT, tensor.to(torch.float64)):
        values = open_input(given).values
        assert torch.equal(values, open_input(tensor).values)
        assert not values.requires_grad
    assert open_input(tensor.bfloat16()).values.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (RGB.astype(object), "object: expected"),
        (np.array("photo.jpg"), "expected"),
        (np.array([None]), "expected"),
        (RGB.astype(bool), "bool: expected"),
        (RGB.astype(np.complex64), "complex64: expected"),
        (torch.empty(3, 6, 9, device="meta"), "no values"),
        (torch.rand(3, 6, 9).to_sparse(), "sparse"),
        (torch.zeros(3, 6, 9, dtype=torch.complex64), "complex64"),
        (torch.zeros(()), "expected"),
        (torch.zeros(3, 0, 9), "expected"),
        (torch.full((3, 2, 2), torch.inf), "values from inf"),
    ],
)
def test_values_that_are_no_image(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_input(given)


CHW, HWC = torch.randint(2, 256, (3, 6, 9), dtype=torch.uint8), torch.randint(2, 256, (6, 9, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (CHW, "x / 255"),
        (CHW[None], "x / 255"),
        (CHW.long(), "x / 255"),
        (CHW.float(), "x / 255"),
        (CHW > 99, "x.float()"),
        ((CHW > 99).long(), "x.float()"),
        (CHW[0], "x[None] / 255"),
        (CHW[0] > 99, "x[None].float()"),
        (HWC, "x.permute(2, 0, 1) / 255"),
        (HWC[None], "x.permute(0, 3, 1, 2) / 255"),
        (HWC / 255, "x.permute(2, 0, 1)"),
        (torch.rand(4, 6, 9), "x[:3]"),
        (torch.rand(2, 4, 6, 9), "x[:, :3]"),
        (torch.rand(6, 9, 4), "x.permute(2, 0, 1)[:3]"),
        (2 * torch.rand(3, 6, 9) - 1, "(x + 1) / 2"),
        (torch.rand(3, 6, 9).to_sparse(), "x.to_dense()"),
        (CHW.numpy(), "x.transpose(1, 2, 0)"),
        (CHW.numpy() > 99, "255 * x.transpose(1, 2, 0).astype('uint8')"),
        (RGB > 99, "255 * x.astype('uint8')"),
        ((RGB > 99).astype(np.int64)[..., 0], "(255 * x).astype('uint8')"),
        (RGB.astype(np.int64), "x.astype('uint8')"),
        (257 * RGB.astype(np.int64), "x.astype('uint16')"),
        (RGB.astype(np.float32), "x.round().astype('uint8')"),
        (RGB / 255, "(255 * x).round().astype('uint8')"),
        (RGB / 127.5 - 1, "(127.5 * (x + 1)).round().astype('uint8')"),
    ],
)
def test_a_remedy_makes_an_image_of_what_was_refused(given: Any, remedy: str) -> None:
    with pytest.raises(InputError) as refused:
        open_input(given)
    assert str(refused.value).endswith(f"convert it: {remedy}")
    opened = open_input(eval(remedy, {"x": given}))
    assert opened.size == (6, 9)
    assert opened.values.max() > 128


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.full((3, 6, 9), torch.nan), "replace NaN"),
        (np.full((6, 9, 3), np.nan), "replace them, as np.nan_to_num"),
        (-CHW.long(), "scale them"),
        (-RGB.astype(np.int64), "scale them"),
        (torch.rand(5, 6, 9), "1 or 3 channels"),
        (np.zeros((5, 6, 9), np.uint8), "1, 3 or 4 channels"),
        (RGB[None], "list"),
    ],
)
def test_what_no_expression_mends_is_said(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_input(given)


def test_a_broken_item_of_a_list_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    good = np.tile(RGB, (4, 4, 1))
    for broken, said in (
        (_truncated(), r"images\[1\]: the image"),
        (RGB.astype(float), r"images\[1\]: got"),
        (None, r"images\[1\]"),
    ):
        with pytest.raises(InputError, match=said):
            model.run("colour", [good, broken, good])
    with pytest.raises(InputError, match=r"b\.png"):
        model.run("colour", [good, tmp_path / "b.png", good])
    results = model.run("colour", [good, tmp_path / "b.png", None, good], errors="return")
    assert [type(result) for result in results] == [np.ndarray, InputError, InputError, np.ndarray]
    assert np.array_equal(results[0], results[3])
    everything = model.run_all([good, None], errors="return")
    assert list(everything) == list(model.tasks)
    assert all(isinstance(broken, InputError) and sound.shape == good.shape for sound, broken in everything.values())


def test_folders_give_the_others_and_the_errors(model: Model, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        Image.fromarray(np.tile(RGB, (4, 4, 1))).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    found = model.run("colour", tmp_path, errors="return")
    assert {name: type(result).__name__ for name, result in found.items()} == {
        "a.png": "Image",
        "b.png": "InputError",
        "c.png": "Image",
    }
    assert [type(result).__name__ for result in model.stream("colour", tmp_path, errors="return")] == [
        "Image",
        "InputError",
        "Image",
    ]
    assert set(model.run_all(tmp_path, errors="return")["edges"]) == set(found)
    with pytest.raises(InputError, match=r"b\.png"):
        model.run("colour", tmp_path)


@pytest.mark.parametrize("path", ["m" * 300 + ".png", "a\0b.png"])
def test_names_that_no_disk_has_are_one_message(model: Model, path: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read|no such file: .*: expected an image"):
        model.run("colour", path)


def test_what_the_system_does_not_let_be_read_is_one_message(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("img2img.inference.conversion.open_image", refused)
    with pytest.raises(InputError, match=r"a\.png.*Permission denied.*permissions"):
        model.run("colour", tmp_path / "a.png")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
)
def test_memory_that_runs_out_is_one_message(model: Model, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(model.network, "forward", fails)
    for run in (
        lambda: model.run("colour", RGB),
        lambda: model.predict("colour", RGB),
        lambda: model.run("colour", torch.rand(3, 200, 300), tile=160),
    ):
        with pytest.raises(OutOfMemoryError, match=r"'colour' ran on an image of \d+ x \d+.*side="):
            run()
    assert isinstance(model.run("colour", [RGB], errors="return")[0], OutOfMemoryError)


@pytest.mark.parametrize("array", [False, True])
def test_what_shines_through_counts_once(array: bool) -> None:
    """A task that changes nothing gives a transparent image back as it was, as far as eight bits of it can tell."""
    rgba = np.random.default_rng(1).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgba[:4, :, 3], rgba[4:8, :, 3] = 0, 255
    opened = open_input(rgba if array else Image.fromarray(rgba))
    found = np.asarray(opened.image(opened.values / 255))
    assert np.array_equal(found[..., 3], rgba[..., 3])
    assert np.array_equal(found[4:8], rgba[4:8])
    assert (found[:4, :, :3] == 255).all(), "where nothing is seen the background is"
    wrong = np.abs(found[8:, :, :3].astype(int) - rgba[8:, :, :3])
    assert (wrong <= np.ceil(255 / np.maximum(rgba[8:, :, 3:], 1))).all(), "one level on white is 255 / alpha of the colour"
    on_white = [
        np.asarray(Image.alpha_composite(Image.new("RGBA", (30, 40), "white"), Image.fromarray(x))) for x in (found, rgba)
    ]
    assert np.abs(on_white[0].astype(int) - on_white[1]).max() <= 1
