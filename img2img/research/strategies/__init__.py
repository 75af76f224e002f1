"""The strategies that masks are compared with: each learns the same sequence of tasks in its own way."""

from img2img.research.strategies.cpg import CPG
from img2img.research.strategies.ewc import EWC
from img2img.research.strategies.joint import Joint
from img2img.research.strategies.lwf import LwF
from img2img.research.strategies.packnet import PackNet
from img2img.research.strategies.separate import DecoderOnly, FineTune, HeadOnly, PartlyTrained, Scratch
from img2img.research.strategies.shared import Sequential, SharedNetwork

__all__ = [
    "CPG",
    "EWC",
    "DecoderOnly",
    "FineTune",
    "HeadOnly",
    "Joint",
    "LwF",
    "PackNet",
    "PartlyTrained",
    "Scratch",
    "Sequential",
    "SharedNetwork",
]
