"""The mask core: per-task masks over the weights of one frozen network.

It knows tensors and modules, and nothing of images, datasets or training.
"""

from img2img.masks.base import Mask, MaskMethod
from img2img.masks.identity import Identity
from img2img.masks.network import MaskedNetwork, TaskModule
from img2img.masks.piggyback import Piggyback

__all__ = ["Identity", "Mask", "MaskMethod", "MaskedNetwork", "Piggyback", "TaskModule"]
