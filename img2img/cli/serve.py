"""`img2img serve`: a bundle in the browser."""

from typing import Annotated, Literal

import typer

from img2img.cli.options import Bundle, Device


def serve(
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
    concurrency: Annotated[int, typer.Option(min=1, help="Images that run at once.")] = 2,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait; more are refused.")] = 16,
    grace: Annotated[float, typer.Option(help="Seconds that a stopped service takes to finish what it runs.")] = 9,
    teach: Annotated[
        bool, typer.Option("--teach", help="Let the page train further tasks, on this machine alone; runs/teach has their files.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a bundle until Ctrl-C: a page to try its tasks, and an HTTP API at /api/v1.

    Nothing leaves the machine. Who may reach it and how much it takes: docs/guides/serve.md.

    Example: img2img serve runs/demo --open
    """
    from img2img.web import Limits, TeachOptions
    from img2img.web import serve as serve_bundle

    limits = Limits(
        upload_bytes=round(max_mb * 1e6), memory_bytes=round(max_memory_gb * 1e9), pixels=round(max_megapixels * 1e6),
        concurrency=concurrency, queue=queue, run_seconds=max_seconds, grace_seconds=grace,
    )  # fmt: skip
    serve_bundle(
        bundle, host=host, port=port, names=name or (), device=device, precision=precision, limits=limits,
        teach=TeachOptions() if teach else None, open_browser=open_,
    )  # fmt: skip
