"""The shape of backbones for classification: normalised image -> trunk -> head, one row of logits an image."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from img2img.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from img2img.backbones.pretrained import IMAGENET, load_matching, read_tensors
from img2img.errors import InputError

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
"""Of CIFAR-10's training images; CIFAR-100's differs by less than 0.02."""
CIFAR_STD = (0.2470, 0.2435, 0.2616)

Output = Literal["head", "backbone"]
"""Where the last linear layer stands: in each task's head, or in the backbone, masked like the rest."""


class Classifier(Backbone):
    """A network from images to logits: `head(trunk((x - mean) / std))`.

    Its children are `trunk`, `head` and, with output="backbone", `output` between them: then the last linear layer is the
    backbone's own, shared and masked, and `head` is an `nn.Identity`, of which a task stores nothing. SupSup and ImpressLearn
    need this: beside random weights a trained head would learn the task alone. Such a network is given to `MaskedNetwork` with
    head="head" and a head of `make_head`, or with head=None and none.

    Linear layers of the head and `output` start as `torch.nn.Linear` does, Kaiming-uniform.

    Args:
        trunk: (N, 3, H, W) normalised images to (N, features).
        features: columns of the trunk's output.
        out_channels: classes, one column of logits each.
        min_size: see `Backbone`.
        spec: see `Backbone`.
        output: where the last linear layer stands, "head" or "backbone".
        mean: see `Backbone`.
        std: see `Backbone`.

    Raises:
        InputError: an option that cannot be used.
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        *,
        out_channels: int,
        min_size: int,
        spec: Mapping[str, Any],
        output: Output = "head",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(stride=1, min_size=min_size, spec=spec, mean=mean, std=std)
        if output not in ("head", "backbone"):
            raise InputError(f"the classifier got output {output!r}: expected 'head' or 'backbone'; choose one of them")
        self.trunk = trunk
        self.output = _linear(features, out_channels) if output == "backbone" else None
        self._features = features
        self.head = self.make_head(out_channels)

    @property
    def head_channels(self) -> int:
        """Columns that the head gets."""
        return self._features if self.output is None else self.output.out_features

    def make_head(self, out_channels: int) -> nn.Module:
        """A fresh head for `out_channels` classes, a plain `nn.Linear`; with output="backbone" an `nn.Identity`.

        Raises:
            InputError: fewer than one class, or another number than the backbone's own output layer has.
        """
        if self.output is None:
            return _linear(self._features, out_channels)
        if out_channels != self.output.out_features:
            raise InputError(
                f"a head for {out_channels} classes on a backbone whose own output layer has {self.output.out_features}: "
                "expected as many, since with output: backbone no task has a layer of its own; give all tasks one number of "
                "classes, or set output: head"
            )
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: (N, 3, H, W) or (N, 1, H, W) float in [0, 1]; one channel is repeated to three. H and W are at least `min_size`.

        Returns:
            (N, out_channels) float logits.

        Raises:
            InputError: the batch has another form (not checked while compiling or tracing).
        """
        y: Tensor = self.trunk(self.normalised(x))
        if self.output is not None:
            y = self.output(y)
        logits: Tensor = self.head(y)
        return logits

    def load_trunk(self, weights: str | os.PathLike[str] | None) -> None:
        """Fill the trunk from a file with the tensors of an earlier network of this shape; None leaves it as it is.

        Raises:
            InputError: "imagenet", of which there are none, or a file that is not there or does not fit.
        """
        if weights is None:
            return
        if weights == IMAGENET:
            raise InputError(
                f"there are no ImageNet weights of {self.spec['kind']}: give a file of an earlier training of it, or "
                "weights: null for random weights"
            )
        load_matching(self.trunk, read_tensors(weights), origin=str(weights), child="trunk")


def _linear(features: int, out_channels: int) -> nn.Linear:
    if out_channels < 1:
        raise InputError(f"a classifier for {out_channels} classes: expected at least 1; correct out_channels")
    return nn.Linear(features, out_channels)


def check_widths(kind: str, widths: Sequence[int]) -> None:
    """Raise `InputError` unless all `widths` of hidden layers are whole numbers of at least 1."""
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in widths):
        raise InputError(
            f"{kind} got hidden {list(widths)}: expected a list of whole numbers of at least 1, one a hidden layer, or an empty "
            "one; correct the backbone's config"
        )
