"""LeNet-300-100: two hidden linear layers on the pixels of a small grey image.

Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998), section III.C, with
ReLU for the sigmoids, as SupSup and ImpressLearn (table 2: 266 thousand weights) have it.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from img2img.backbones.base import BACKBONES
from img2img.backbones.classifier import Classifier, Output, check_widths
from img2img.errors import InputError

MNIST_MEAN = 0.1307
MNIST_STD = 0.3081


@BACKBONES.register("lenet")
class LeNet(Classifier):
    """Linear layers with ReLU (`fc1`, `fc2`, ... of the trunk), and the output layer.

    With the defaults and 10 classes it has 266,200 weights and 410 biases. The layers start as `torch.nn.Linear` does; of random
    backbones `img2img.masks.randomise` draws the weights anew and clears the biases.

    Args:
        out_channels: classes.
        in_pixels: of a square image: 784 is 28 x 28. Images of any other size are refused.
        hidden: widths of the hidden layers; an empty list leaves a linear classifier.
        output: where the output layer stands, see `Classifier`.
        weights: a file with the tensors of an earlier network of this shape, or None for random weights.
        mean: of the grey values on [0, 1]; MNIST's.
        std: their standard deviation; MNIST's.

    Raises:
        InputError: an option that cannot be used, or weights that are not there or do not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        in_pixels: int = 784,
        hidden: Sequence[int] = (300, 100),
        output: Output = "head",
        weights: str | os.PathLike[str] | None = None,
        mean: float = MNIST_MEAN,
        std: float = MNIST_STD,
    ) -> None:
        side = math.isqrt(max(in_pixels, 0))
        if in_pixels < 1 or side * side != in_pixels:
            raise InputError(
                f"lenet got in_pixels {in_pixels}: expected a square number, the pixels of a square image, such as 784 of "
                "28 x 28; correct the backbone's config"
            )
        check_widths("lenet", hidden)
        layers: list[tuple[str, nn.Module]] = [("grey", Grey()), ("flatten", nn.Flatten())]
        features = in_pixels
        for i, width in enumerate(hidden, 1):
            layers += [(f"fc{i}", nn.Linear(features, width)), (f"relu{i}", nn.ReLU(inplace=True))]
            features = width
        super().__init__(
            nn.Sequential(OrderedDict(layers)),
            features,
            out_channels=out_channels,
            min_size=side,
            spec={
                "kind": "lenet",
                "out_channels": out_channels,
                "in_pixels": in_pixels,
                "hidden": hidden,
                "output": output,
                "mean": mean,
                "std": std,
            },
            output=output,
            mean=(mean,) * 3,
            std=(std,) * 3,
        )
        self.load_trunk(weights)

    def check(self, x: Tensor) -> None:
        """As any backbone's; the size must be exactly the network's."""
        super().check(x)
        if list(x.shape[-2:]) != [self.min_size] * 2:
            raise InputError(
                f"the network got images of {x.shape[-2]} x {x.shape[-1]} pixels (height x width): expected exactly "
                f"{self.min_size} x {self.min_size}, one input for each pixel; resize them or set in_pixels"
            )


class Grey(nn.Module):
    """(N, 3, H, W) to (N, 1, H, W): the mean of the channels, which of grey images is the value of each of them."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the channels."""
        return x.mean(1, keepdim=True)
