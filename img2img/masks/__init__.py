"""The mask core: per-task masks over the weights of one frozen network.

It knows tensors and modules, and nothing of images, datasets or training.
"""

from img2img.masks.adapter_files import Adapter, read_adapter
from img2img.masks.adapter_tasks import add_adapter, write_adapter
from img2img.masks.base import METHODS, Mask, MaskMethod, build_method
from img2img.masks.basis import Basis
from img2img.masks.delta import FinetunedDelta, delta_from_finetuned
from img2img.masks.deployed import DeployedNetwork
from img2img.masks.layers import Layer
from img2img.masks.methods.affine import Affine
from img2img.masks.methods.channel import DAN, IA3, ResidualAdapter
from img2img.masks.methods.identity import Identity
from img2img.masks.methods.impresslearn import ImpressLearn
from img2img.masks.methods.ksm import KSM
from img2img.masks.methods.lora import DoRA, LoKr, LoRA
from img2img.masks.methods.mixed import Mixed, TrainableCopy
from img2img.masks.methods.piggyback import Piggyback
from img2img.masks.methods.signs import DenseSigns
from img2img.masks.methods.sparse_signs import SparseSigns
from img2img.masks.methods.supsup import SupSup
from img2img.masks.network import MaskedNetwork, TaskModule
from img2img.masks.random_weights import randomise
from img2img.masks.task_basis import basis_of_tasks

__all__ = [
    "DAN",
    "IA3",
    "KSM",
    "METHODS",
    "Adapter",
    "Affine",
    "Basis",
    "DenseSigns",
    "DeployedNetwork",
    "DoRA",
    "FinetunedDelta",
    "Identity",
    "ImpressLearn",
    "Layer",
    "LoKr",
    "LoRA",
    "Mask",
    "MaskMethod",
    "MaskedNetwork",
    "Mixed",
    "Piggyback",
    "ResidualAdapter",
    "SparseSigns",
    "SupSup",
    "TaskModule",
    "TrainableCopy",
    "add_adapter",
    "basis_of_tasks",
    "build_method",
    "delta_from_finetuned",
    "randomise",
    "read_adapter",
    "write_adapter",
]
