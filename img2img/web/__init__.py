"""A bundle in a browser and over HTTP: `serve("runs/demo")`.

`api` answers requests, `page` is a client of it: three files that never change. `service` runs images within `limits`,
`served_tasks` has the tasks, which `tasks_api` and the bundle's folder change, `security` checks every request, `monitoring`
counts them, and `teach*` lets the user of this machine train a further task. The service sends nothing to another
machine, and no file of this machine can be read through it.
"""

from img2img.web.limits import Limits, TeachOptions
from img2img.web.server import build_app, serve

__all__ = ["Limits", "TeachOptions", "build_app", "serve"]
