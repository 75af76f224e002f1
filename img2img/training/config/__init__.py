"""The typed config: what Hydra composes is read here, once, and everything after receives checked objects."""

from img2img.training.config.experiment import (
    BackboneConfig,
    BasisOfTasks,
    DeviceOptions,
    EvaluationOptions,
    Experiment,
    ExperimentConfig,
    MaskOptions,
    RandomBasis,
    TaskConfig,
)
from img2img.training.config.fingerprint import backbone_fingerprint, task_fingerprint
from img2img.training.config.read import read_experiment
from img2img.training.config.train_options import (
    AugmentationOptions,
    AverageOptions,
    OptimiserName,
    OptimiserOptions,
    ScheduleOptions,
    TrainOptions,
    ValidationOptions,
)

__all__ = [
    "AugmentationOptions",
    "AverageOptions",
    "BackboneConfig",
    "BasisOfTasks",
    "DeviceOptions",
    "EvaluationOptions",
    "Experiment",
    "ExperimentConfig",
    "MaskOptions",
    "OptimiserName",
    "OptimiserOptions",
    "RandomBasis",
    "ScheduleOptions",
    "TaskConfig",
    "TrainOptions",
    "ValidationOptions",
    "backbone_fingerprint",
    "read_experiment",
    "task_fingerprint",
]
