"""A bundle's denoising task beside total variation (scikit-image), a classical denoiser: MSE (0..255) of what each leaves.

    python benchmarks/denoising.py starter --test data/photos/test --val data/photos/val --limit 25

Noise is Gaussian: "colour" where each channel has its own, "luminance" where all have the same, as in grey photographs. Total
variation gets, for each kind and strength of noise, the weight that is best on the validation images; the network gets nothing.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import environment
from numpy.typing import NDArray
from PIL import Image
from skimage.restoration import denoise_tv_chambolle

import img2img
from img2img.data.images.decode import read_image
from img2img.data.images.listing import list_images

Values = NDArray[np.float64]
WEIGHTS = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--task", default="denoise")
    parser.add_argument("--test", required=True, help="a folder of images that the task has not learned from")
    parser.add_argument("--val", required=True, help="a folder of others, to choose the weight of total variation on")
    parser.add_argument("--limit", type=int, default=25, help="test images, evenly over the folder; of the others ten")
    parser.add_argument("--side", type=int, default=192, help="the shorter side to which images are resized first")
    parser.add_argument("--sigma", type=float, nargs="*", default=[10, 15, 25, 50], help="standard deviations of the noise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    model = img2img.load(options.bundle)
    test, val = images(options.test, options.limit, options.side), images(options.val, 10, options.side)
    print(f"{len(test)} test images, {len(val)} to choose the weight on\n")
    print("| noise | σ | noisy | total variation | weight | network |\n| --- | --- | --- | --- | --- | --- |")

    def network(noisy: Values) -> Values:
        found = model.run(options.task, torch.tensor(noisy).permute(2, 0, 1)[None].float())
        values: Values = found[0].permute(1, 2, 0).double().numpy()
        return values

    for kind in ("colour", "luminance"):
        for sigma in options.sigma:
            chosen = min(WEIGHTS, key=lambda weight: error(variation(weight), val, kind, sigma, seed=1))
            left = [error(denoise, test, kind, sigma, seed=0) for denoise in (lambda x: x, variation(chosen), network)]
            print("| {} | {:g} | {:.0f} | {:.0f} | {} | {:.0f} |".format(kind, sigma, *left[:2], chosen, left[2]), flush=True)


def images(folder: str, count: int, side: int) -> list[Values]:
    """`count` images of a folder, evenly spread, as RGB in [0, 1], the shorter side resized."""
    files = list_images(folder)
    found = []
    for file in files[:: max(1, len(files) // count)][:count]:
        image = Image.fromarray(read_image(file))
        scale = side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        found.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.float64) / 255)
    return found


def variation(weight: float) -> Callable[[Values], Values]:
    """Total variation denoising (Chambolle 2004) of one weight."""

    def denoise(noisy: Values) -> Values:
        found: Values = denoise_tv_chambolle(noisy, weight=weight, channel_axis=-1)
        return found

    return denoise


def error(denoise: Callable[[Values], Values], clean: Sequence[Values], kind: str, sigma: float, *, seed: int) -> float:
    """Mean MSE (0..255) of denoised images; every denoiser sees the same noise."""
    rng = np.random.default_rng(seed)
    found = []
    for image in clean:
        shape = image.shape if kind == "colour" else (*image.shape[:2], 1)
        noisy = np.clip(image + rng.normal(size=shape) * sigma / 255, 0, 1)
        found.append(float(np.mean((np.clip(denoise(noisy), 0, 1) - image) ** 2)) * 255**2)
    return float(np.mean(found))


if __name__ == "__main__":
    main()
