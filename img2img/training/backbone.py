"""The backbone that a run starts from: a new one, that of a bundle, or what another run trained."""

from pathlib import Path

import torch

from img2img.backbones import Backbone
from img2img.bundle import load_backbone, read_bundle, task_path
from img2img.errors import InputError
from img2img.masks import MaskedNetwork, randomise
from img2img.training.config import Experiment
from img2img.training.progress import progress_of
from img2img.training.results import TaskRecord


def starting_backbone(experiment: Experiment, out_channels: int) -> Backbone:
    """The backbone of an experiment before anything is learned, with a head of so many channels where it is a new one."""
    config = experiment.backbone
    if config.source is not None:
        _, backbone = load_backbone(config.source.folder, read_bundle(config.source.folder))
        return backbone
    torch.manual_seed(experiment.seed_of("backbone"))
    backbone = config.build(out_channels)
    if config.mode == "random":  # a network's own start is made for training: it has biases, and other scales
        randomise(backbone, kind=config.init, seed=experiment.seed_of("backbone"))
    if config.mode != "first_task":
        finish_backbone(experiment, backbone)
    return backbone


@torch.no_grad()
def finish_backbone(experiment: Experiment, backbone: Backbone) -> None:
    """With `backbone.half`, round the weights of a backbone that no training changes any more to float16.

    Weights are the parameters of two axes or more; those beyond the range become its end. Biases and normalisation stay as they
    are: they are few.
    """
    if not experiment.backbone.half:
        return
    end = torch.finfo(torch.float16).max
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.clamp(-end, end).half())


def backbone_of_run(source: Path, first: str, fingerprint: str) -> tuple[TaskRecord, MaskedNetwork, Backbone]:
    """The record of the first task of another run, whose backbone is to be used here; the backbone, with that task and plain.

    Raises:
        InputError: there is no such run, its first task was learned under another configuration, or its bundle is damaged.
    """
    path = source / "progress.json"
    if not path.is_file():
        raise InputError(f"backbone_from={source} holds no run: expected progress.json there; give that of one with {first!r}")
    progress = progress_of(path)
    if progress.backbone != fingerprint or first not in progress.tasks:
        raise InputError(
            f"backbone_from={source}: its first task was learned under another configuration than {first!r} here; give one with "
            "the same first task, backbone, steps and seed, or leave backbone_from out"
        )
    bundle = source / "bundle"
    network, backbone = load_backbone(bundle, read_bundle(bundle))
    network.load_task(task_path(bundle, first), name=first)
    return progress.tasks[first], network, backbone
