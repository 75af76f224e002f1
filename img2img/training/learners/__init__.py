"""Ways to learn a sequence of tasks: masks on a frozen backbone, and the methods that they are compared with."""

from img2img.training.learners.base import LEARNERS, Context, Learner, Phase, Ready, build_learner
from img2img.training.learners.cpg import CPG
from img2img.training.learners.ewc import EWC
from img2img.training.learners.joint import Joint
from img2img.training.learners.lwf import LwF
from img2img.training.learners.masks import MaskLearner
from img2img.training.learners.packnet import PackNet
from img2img.training.learners.separate import DecoderOnly, FineTune, HeadOnly, PartlyTrained, Scratch
from img2img.training.learners.shared import Sequential, SharedNetwork

__all__ = [
    "CPG",
    "EWC",
    "LEARNERS",
    "Context",
    "DecoderOnly",
    "FineTune",
    "HeadOnly",
    "Joint",
    "Learner",
    "LwF",
    "MaskLearner",
    "PackNet",
    "PartlyTrained",
    "Phase",
    "Ready",
    "Scratch",
    "Sequential",
    "SharedNetwork",
    "build_learner",
]
