"""`img2img info`: what is installed, and what a bundle is."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from img2img import formatting
from img2img.cli.options import Json
from img2img.cli.output import print_facts
from img2img.cli.task_facts import measured
from img2img.errors import InputError
from img2img.version import __version__

PACKAGES = (
    "torch", "torchvision", "segmentation-models-pytorch", "timm", "kornia", "albumentations", "lightning-fabric", "hydra-core",
    "fastapi", "onnx", "onnxruntime", "huggingface_hub",
)  # fmt: skip


def info(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle's folder, or a run's.")] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed and which devices there are; or what a bundle holds.

    Example: img2img info runs/demo
    """
    facts = _installed() if bundle is None else _of_bundle(bundle)
    if as_json:
        typer.echo(json.dumps(facts, default=dataclasses.asdict))
        return
    for key in ("backbone bytes", "bytes of tasks"):
        if key in facts:
            facts[key] = formatting.size(facts[key])
    metrics = {f"test of {name}": str(test) for name, test in facts.pop("metrics", {}).items()}
    print_facts(facts | metrics)


def _installed() -> dict[str, Any]:
    import torch

    from img2img.bundle import packaged_bundles

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, Any] = {"img2img": __version__, "python": platform.python_version(), "platform": platform.platform()}
    facts |= {"cpu threads": torch.get_num_threads(), "gpus": gpus or ["none"], "bundles": list(packaged_bundles())}
    return facts | {package: version(package) for package in PACKAGES}


def _of_bundle(bundle: Path) -> dict[str, Any]:
    from img2img.bundle import bundle_folder, read_bundle, task_path
    from img2img.masks.storage import read_header
    from img2img.tasks.stored import stored_baseline, stored_task

    folder = bundle_folder(bundle)
    description = read_bundle(folder)

    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0

    metrics = {}
    for name in description["tasks"]:
        with contextlib.suppress(InputError):  # of a kind that is not known here, or without its file
            told = read_header(task_path(folder, name))["info"]
            task = stored_task(told)
            metrics[name] = measured(task, told.get("figures", {}), stored_baseline(task, told))
    tasks = {name: size(task_path(folder, name)) for name in description["tasks"]}
    return {
        "folder": str(folder),
        "backbone": " ".join(str(v) for k, v in description["spec"].items() if k in ("kind", "arch", "encoder", "name")),
        "backbone SHA-256": description["sha256"],
        "backbone bytes": size(folder / "backbone.safetensors"),
        "tasks": list(tasks),
        "metrics": metrics,
        "bytes of tasks": sum(tasks.values()),
        "bases": list(description["bases"]),
    }
