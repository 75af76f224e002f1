"""Using a bundle: `img2img.load("runs/demo").run("colour", "photo.jpg")`."""

from img2img.inference.images import Picture
from img2img.inference.info import TaskInfo
from img2img.inference.model import Model, load

__all__ = ["Model", "Picture", "TaskInfo", "load"]
