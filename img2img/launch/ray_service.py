"""The web service as replicas on a Ray cluster, through Ray Serve: `img2img serve BUNDLE --launcher ray`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from img2img.bundle import bundle_folder, check_has_tasks, read_bundle
from img2img.errors import InputError
from img2img.extras import require
from img2img.inference.device import usual_batch
from img2img.launch.ray_launcher import connected, processes_for
from img2img.registry import import_modules, imported
from img2img.web import Limits
from img2img.web.server import bundle_app, url_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from img2img.inference import Batching

NAME = "img2img"
"""Of the application in the cluster: the next bundle that is served there takes its place."""


def serve_on_ray(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    address: str | None = None,
    min_replicas: int = 1,
    replicas: int | None = None,
    gpus: float | None = None,
    limits: Limits | None = None,
    wait: bool = True,
    **options: Any,
) -> str:
    """Serve a bundle by replicas that each have the whole model; page and API are those of one process.

    Ray Serve passes each request to a replica with few of them, starts further replicas while more requests wait than a replica
    runs at once, and ends them when they are idle. A replica that is lost is started again. Each follows the bundle's folder,
    which all machines must see: a task that one of them adds is offered by all within a second. Where a bundle is served already,
    this takes its place replica by replica, and requests wait meanwhile.

    Args:
        bundle: its folder, or that of a run.
        host: where each machine with a replica listens.
        port: likewise.
        address: of the cluster; see `connected`. What is served there goes on after this returns, until `serve shutdown` of Ray
            ends it. Without a cluster it is served until Ctrl-C.
        min_replicas: at least. With two one answers while the other is replaced; with one requests wait until the new one has
            its model.
        replicas: at most; None: one for each GPU, or for each core where there is none.
        gpus: of a replica; None: one where the cluster has any.
        limits: of a replica; those of connections and of the shutdown are Ray Serve's.
        wait: until Ctrl-C, where there is no cluster; else this returns, and Ray ends with the process.
        options: further ones of `img2img.web.server.bundle_app`; the replicas decide what is left to their device.

    Returns:
        The URL.

    Raises:
        InputError: no bundle, a name that is none, Ray is not installed or not there, or it cannot serve the bundle.
    """
    folder = bundle_folder(bundle).absolute()
    check_has_tasks(folder, read_bundle(folder))  # now, rather than in a replica's log
    if port < 1:
        raise InputError(f"port={port} with --launcher ray: expected 1 to 65535, the same on each machine")
    require("ray.serve", extra="ray,serve", what="--launcher ray")
    from img2img.web.security import host_names

    host_names(options.get("names", ()))  # likewise
    ray, made, local = connected(address, what="--launcher ray")
    from ray import serve

    limits = limits or Limits()
    try:
        gpus, room = processes_for(ray.cluster_resources(), gpus)
        most = replicas or max(min_replicas, room)
        if most < min_replicas:
            raise InputError(f"--replicas {most} with --min-replicas {min_replicas}: expected as many at least")

        modules, at_once = imported(), images_at_once(limits, options.get("batching"), options.get("device", "auto"), gpus)

        def build() -> "FastAPI":
            import_modules(modules)
            return bundle_app(folder, host=host, limits=limits, watch=True, **options)

        service: Any = serve.deployment(
            serve.ingress(build)(),
            name=NAME,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            max_ongoing_requests=at_once + limits.queue,
            autoscaling_config={
                "min_replicas": min_replicas,
                "max_replicas": most,
                "target_ongoing_requests": at_once,
            },
            graceful_shutdown_timeout_s=limits.grace_seconds,
        )
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(service.bind(), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise InputError(f"Ray cannot serve {folder}: {error}") from error
        url = url_of(host, port)
        print(f"img2img serves {folder} at {url} by {most} replicas at most", flush=True)
        if local and wait:
            _wait()
        return url
    finally:
        if local and wait:
            serve.shutdown()
        if made and (wait or not local):
            ray.shutdown()


def images_at_once(limits: Limits, batching: "Batching | None", device: str, gpus: float) -> int:
    """How many images a replica runs at once, as `bundle_app` decides there: this machine need not have the replica's GPU."""
    on_cpu = device == "cpu" or (device == "auto" and not gpus)
    batch = (None if batching is None else batching.batch_max) or usual_batch(torch.device("cpu" if on_cpu else "cuda"))
    return limits.concurrency or 2 * batch


def _wait() -> None:
    print("Ctrl-C stops it", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
