"""A bundle in a browser and over HTTP: `serve("runs/demo")`.

One service, two ways in: a page (`page`) and an API (`api`). Both run images through `service`, which bounds them by
`limits`. `security` checks every request, `gradio_allowlist` those that Gradio would answer by itself; `temporary_images` holds
the images of the page. The service sends nothing to another machine, and no file of this machine can be read through it.
"""

from img2img.web.limits import Limits
from img2img.web.server import build_app, serve

__all__ = ["Limits", "build_app", "serve"]
