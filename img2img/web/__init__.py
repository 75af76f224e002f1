"""A bundle in a browser and over HTTP: `serve("runs/demo")`.

One service, two ways in: a page (`page`) and an API (`api`). Both run images through `service`, which bounds them by
`limits`. `guard` stands before both of them and `gate` before what Gradio would answer by itself; `files` holds what the page
shows. Nothing here reaches out of the machine, and nothing of the machine can be read through it.
"""

from img2img.web.limits import Limits
from img2img.web.server import build_app, serve

__all__ = ["Limits", "build_app", "serve"]
