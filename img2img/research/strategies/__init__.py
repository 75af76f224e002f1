"""Ways to learn a sequence of tasks: masks on a frozen backbone, and the methods that they are compared with."""

from img2img.research.strategies.cpg import CPG
from img2img.research.strategies.ewc import EWC
from img2img.research.strategies.joint import Joint
from img2img.research.strategies.lwf import LwF
from img2img.research.strategies.packnet import PackNet
from img2img.research.strategies.separate import DecoderOnly, FineTune, HeadOnly, PartlyTrained, Scratch
from img2img.research.strategies.shared import Sequential, SharedNetwork
from img2img.training.mask_strategy import MaskStrategy
from img2img.training.strategy import STRATEGIES, Context, Phase, Strategy, TaskData, build_strategy

__all__ = [
    "CPG",
    "EWC",
    "STRATEGIES",
    "Context",
    "DecoderOnly",
    "FineTune",
    "HeadOnly",
    "Joint",
    "LwF",
    "MaskStrategy",
    "PackNet",
    "PartlyTrained",
    "Phase",
    "Scratch",
    "Sequential",
    "SharedNetwork",
    "Strategy",
    "TaskData",
    "build_strategy",
]
