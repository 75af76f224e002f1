"""Comparison methods: the same task, data and budget without masks. They own a mutable copy of the backbone."""

from typing import Self

from torch import Tensor, nn

from img2img.bundle import HEAD
from img2img.masks import MaskedNetwork


class DecoderOnly(nn.Module):
    """The backbone with its encoder frozen, normalisation included; decoder and head are trained (the poster's "decoder").

    Args:
        network: gives the backbone, which is copied.
        head: the task's fresh head.
    """

    def __init__(self, network: MaskedNetwork, head: nn.Module) -> None:
        super().__init__()
        self.model = network.copy_backbone(head).requires_grad_(True)
        self._encoder = (self.model.get_submodule("encoder").requires_grad_(False),)  # in a tuple: registered already
        assert self.model.get_submodule(HEAD) is head

    def forward(self, x: Tensor) -> Tensor:
        """The raw output."""
        y: Tensor = self.model(x)
        return y

    def own_bytes(self) -> int:
        """What the task would store: the decoder and the head, with their normalisation state."""
        own = (t for name, t in self.model.state_dict().items() if not name.startswith("encoder."))
        return sum(t.numel() * t.element_size() for t in own)

    def train(self, mode: bool = True) -> Self:
        """As any module's, but the encoder stays in evaluation mode."""
        super().train(mode)
        self._encoder[0].train(False)
        return self
