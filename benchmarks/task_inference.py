"""How often the task of a batch without a name is found, over the tasks of a finished run.

    make demo
    python benchmarks/task_inference.py experiment=demo out=runs/demo

For every task, inputs of its test set in batches of 1, 4 and 8 images; the tasks compared are those with running statistics of
their own. Also: the similarity matrix of the masks, zeroed weights by layer, and the bytes of each task's file.
"""

import sys
from functools import partial

import torch
from common import console, environment
from omegaconf import OmegaConf
from rich.table import Table

from img2img.masks import analysis, plots
from img2img.masks.storage import read_header
from img2img.masks.task_inference import accuracy, by_norm_statistics
from img2img.training.compose import compose
from img2img.training.config import read_experiment
from img2img.training.sequence import SequenceRunner


def main(overrides: list[str]) -> None:
    config = OmegaConf.to_container(compose("image_to_image", overrides), resolve=True)
    assert isinstance(config, dict)
    config.pop("data_root", None)
    runner = SequenceRunner(read_experiment(config))  # type: ignore[arg-type]
    network = runner.run().eval()  # a finished run trains nothing
    print(environment())
    names = list(network.tasks())

    for size in (1, 4, 8):
        batches = {}
        for name in names:
            task_data = runner.task_data[name]
            inputs = runner.evaluator.check_input(task_data.task, task_data.parts.test, 96)
            batches[name] = [runner.evaluator.placed(x) for x in inputs.split(size) if len(x) == size]
        found = accuracy(partial(by_norm_statistics, network, tasks=names), batches)
        count = sum(map(len, batches.values()))
        table = Table(title=f"task found from {size} image(s): {found.accuracy:.3f} of {count} batches")
        for column in ("true \\ found", *names):
            table.add_column(column, justify="right")
        for name in names:
            table.add_row(name, *(str(found.confusion[name].get(other, 0)) for other in names))
        console().print(table)

    for corrected in (False, True):
        tasks, matrix = analysis.similarity(network, chance_corrected=corrected)
        table = Table(title="Cohen's kappa of masks" if corrected else "ratio of equal mask values")
        for column in ("", *tasks):
            table.add_column(column, justify="right")
        for name, row in zip(tasks, matrix, strict=True):
            table.add_row(name, *("—" if value is None else f"{value:.3f}" for value in row))
        console().print(table)
        figure = plots.similarity_figure(tasks, matrix, chance_corrected=corrected)
        figure.savefig(runner.folder / f"similarity{'_kappa' if corrected else ''}.png", dpi=120, bbox_inches="tight")
    rows = analysis.density_table(network)
    plots.density_figure(rows).savefig(runner.folder / "zeroed.png", dpi=120, bbox_inches="tight")

    table = Table(title="stored")
    for column in ("task", "density", "bits a weight", "entropy", "mask bytes", "file bytes"):
        table.add_column(column, justify="right")
    densities = {row.task: row.density for row in analysis.density_totals(rows)}
    for name in names:
        path = runner.folder / "bundle" / "tasks" / f"{name}.safetensors"
        storage = read_header(path)["storage"]
        if storage["weights"]:
            bits, entropy = storage["coded_bytes"] * 8 / storage["weights"], storage["entropy_bits"] / storage["weights"]
            sizes = f"{storage['coded_bytes']:,}", f"{path.stat().st_size:,}"
            table.add_row(name, f"{densities[name]:.4f}", f"{bits:.4f}", f"{entropy:.4f}", *sizes)
    console().print(table)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1:])
