"""Using a bundle: `img2img.load("runs/demo").run("colour", "photo.jpg")`."""

from img2img.inference.conversion import ImageLike
from img2img.inference.mixed_batches import Batching
from img2img.inference.model import Model
from img2img.inference.opening import load
from img2img.inference.task_info import TaskInfo

__all__ = ["Batching", "ImageLike", "Model", "TaskInfo", "load"]
