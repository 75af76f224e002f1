"""`img2img serve`: a bundle in the browser."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from img2img.cli.options import Address, Bundle, Device, Gpus, OnRay, check_finite, check_only_on_ray, read_text


def serve(
    context: typer.Context,
    bundle: Bundle,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets in whoever can reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 7860,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A further name of the service, such as a proxy's; can be given again.", show_default=False),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16 is faster where the processor has it.")
    ] = "float32",
    max_mb: Annotated[float, typer.Option(help="Largest image file, in MB.")] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Largest image.")] = 24,
    max_memory_gb: Annotated[float, typer.Option(help="Memory for all images that run at once, without the model.")] = 4,
    max_seconds: Annotated[float, typer.Option(help="Longest run of an image.")] = 120,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Images at once; by default two batches of them.", show_default=False)
    ] = None,
    batch_max: Annotated[
        int | None,
        typer.Option(min=1, help="Images of a batch of mixed tasks; 8, or 1 on a CPU, which is none.", show_default=False),
    ] = None,
    batch_window_ms: Annotated[float, typer.Option(help="Longest time that a batch waits for requests that are being read.")] = 5,
    exact: Annotated[
        bool | None,
        typer.Option("--exact/--no-exact", help="Run images of one task alone or together; alone on a CPU.", show_default=False),
    ] = None,
    max_weights_gb: Annotated[
        float | None, typer.Option(help="Memory for the weights that are kept of tasks.", show_default=False)
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait; more are refused.")] = 16,
    grace: Annotated[float, typer.Option(help="Seconds that a stopped service takes to finish what it runs.")] = 9,
    teach: Annotated[
        bool, typer.Option("--teach", help="Let the page train further tasks, on this machine alone; runs/teach has their files.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who has the token in it may add and delete tasks over HTTP.", show_default=False),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the bundle's folder: tasks come and go with it.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    launcher: OnRay = None,
    address: Address = None,
    min_replicas: Annotated[int, typer.Option(min=1, help="At least so many on Ray; with 2 an update makes nobody wait.")] = 1,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="At most so many on Ray; one for each GPU or core by default.", show_default=False)
    ] = None,
    gpus: Gpus = None,
) -> None:
    """Serve a bundle until Ctrl-C: a page to try its tasks, and an HTTP API at /api/v1.

    Nothing leaves the machine. Who may reach it and how much it takes: docs/guides/serve.md.

    Example: img2img serve runs/demo --open
    """
    from img2img.errors import InputError
    from img2img.inference import Batching
    from img2img.web import Limits, TeachOptions
    from img2img.web import serve as serve_bundle

    check_only_on_ray(context, launcher, "address", "min_replicas", "replicas", "gpus")
    sizes = {"--max-mb": max_mb, "--max-megapixels": max_megapixels, "--max-memory-gb": max_memory_gb}
    check_finite({**sizes, "--max-weights-gb": max_weights_gb, "--max-seconds": max_seconds}, above_0=True)
    check_finite({"--batch-window-ms": batch_window_ms, "--grace": grace, "--gpus": gpus})
    for option, seconds in {"--max-seconds": max_seconds, "--grace": grace}.items():
        if seconds < 1:
            raise InputError(f"{option} {seconds:g}: expected 1 or more seconds; correct it")
    limits = Limits(
        upload_bytes=round(max_mb * 1e6), memory_bytes=round(max_memory_gb * 1e9), pixels=round(max_megapixels * 1e6),
        concurrency=concurrency, queue=queue, run_seconds=max_seconds, grace_seconds=grace,
    )  # fmt: skip
    options: dict[str, Any] = {
        "host": host, "port": port, "names": name or (), "device": device, "precision": precision, "limits": limits,
        "batching": Batching(batch_max=batch_max, window=batch_window_ms / 1000, exact=exact),
        "weights_bytes": None if max_weights_gb is None else round(max_weights_gb * 1e9),
        "token": None if token_file is None else read_text(token_file, "--token-file", "the token"),
    }  # fmt: skip
    if launcher is not None:
        from img2img.launch.ray_service import serve_on_ray

        if teach or open_:
            raise InputError("--launcher ray with --teach or --open: a cluster serves no single user; leave one out")
        serve_on_ray(bundle, address=address, min_replicas=min_replicas, replicas=replicas, gpus=gpus, **options)
        return
    serve_bundle(bundle, teach=TeachOptions() if teach else None, watch=watch, open_browser=open_, **options)
