"""A study's report in Markdown: its tables, and the figures beside it."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from img2img.errors import InputError
from img2img.files.atomic import write_bytes
from img2img.files.writable import check_writable
from img2img.formatting import DASH, markdown_table
from img2img.research.impresslearn.figures import at, by_count, draw, mean_of
from img2img.research.impresslearn.options import KINDS
from img2img.research.impresslearn.results import read_study_results

_CAPTIONS = {
    "accuracy": "Accuracy on new tasks by number and kind of basis masks; bands from the lowest to the highest seed.",
    "basis_tasks": "Basis tasks without their label, after figure 6 of the paper.",
    "overlap": "How often two masks keep the same weight; equal ones: 1 / density.",
    "variants": "The variants of section 5 and appendix A.5.",
}


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Draw the figures into `folder/figures` and write `folder/report.md`."""
    drawn = draw(folder / "figures", results)
    study, environment = results["study"], results["environment"]
    densities = list(dict.fromkeys(row["density"] for row in results["own"]))
    seeds = len({row["seed"] for row in results["own"]})
    head = [
        f"# {study['name']}",
        "",
        f"{len({row['task'] for row in results['own']})} new tasks, {seeds} seed(s), commit {environment['commit']}, "
        f"{environment['device']}, torch {environment['torch']}. Accuracies are means over tasks and seeds, in per cent of the "
        f"test images; always the most frequent class: {_percent(results['majority'])}.",
    ]
    parts = [head, _accuracy(results, densities)]
    if results.get("basis"):
        parts.append(_basis(results, densities))
    if results.get("inference"):
        parts.append(_inference(results))
    if results.get("variants"):
        parts.append(_variants(results))
    if results["overlaps"]:
        parts.append(_overlap(results, densities))
    parts += [_storage(results), _table_2(results)]
    figures = [f"![{_CAPTIONS[path.stem]}](figures/{path.name})\n\n{_CAPTIONS[path.stem]}" for path in drawn]
    text = "\n\n".join(["\n".join(part).rstrip() for part in parts] + ["## Figures", *figures]) + "\n"
    return write_bytes(folder / "report.md", text.encode())


def rebuild_report(folder: Path, out: Path) -> Path:
    """Write the report of a study anew, from the `results.json` in its folder: `out/report.md` and `out/figures`.

    Raises:
        InputError: `results.json` is missing or damaged, or rows are missing in it.
    """
    results = read_study_results(folder)
    check_writable(out, "--out", "figures")
    try:
        return write_report(out, results)
    except statistics.StatisticsError as error:
        raise InputError(
            f"{folder / 'results.json'}: a table of its report has a cell without rows ({error}): restore the file from a copy, "
            "or run the study again"
        ) from error


def _accuracy(results: Mapping[str, Any], densities: Sequence[float]) -> list[str]:
    counts = sorted({row["count"] for row in results["combined"]})
    rows = []
    for density in densities:
        rows.append(["own mask (SupSup)", f"{density:g}", _percent(mean_of(at(results["own"], density=density)))])
        rows[-1] += [""] * (len(counts) - 1)
        rows.append(["another task's mask", f"{density:g}", _percent(mean_of(at(results["wrong"], density=density)))])
        rows[-1] += [""] * (len(counts) - 1)
        for kind in KINDS:
            found = at(results["combined"], density=density, kind=kind)
            if found:
                rows.append([kind, f"{density:g}", *(_cell(by_count(found, "accuracy").get(count)) for count in counts)])
    return ["## New tasks", "", markdown_table(["basis masks", "density", *map(str, counts)], rows)]


def _basis(results: Mapping[str, Any], densities: Sequence[float]) -> list[str]:
    counts = sorted({row["count"] for row in results["basis"]})
    lines = {
        "own": "own mask (GG)",
        "alpha": "combination (basis-GN)",
        "alpha_finds": "largest coefficient is the task's mask",
        "one_shot": "mask found in one shot (GN)",
        "one_shot_finds": "one shot finds the task's mask",
        "every_mask": "mask found by running every one",
        "every_mask_finds": "running every one finds the task's mask",
    }
    rows = [
        [label, f"{density:g}", *(_cell(by_count(at(results["basis"], density=density), key).get(count)) for count in counts)]
        for density in densities
        for key, label in lines.items()
    ]
    return ["## Basis tasks without their label", "", markdown_table(["", "density", *map(str, counts)], rows)]


def _inference(results: Mapping[str, Any]) -> list[str]:
    header = ["tasks", "kind", "masks", "epochs", "seed", "batches", "one shot", "halving", "every task", "accuracy"]
    rows = [
        [
            str(row["tasks"]),
            row.get("kind", "heterogeneous"),
            *(str(row[key]) for key in ("count", "epochs", "seed", "batches")),
            *(_percent(row[key]) for key in ("one_shot", "halving", "every_task", "accuracy")),
        ]
        for row in results["inference"]
    ]
    text = "How often the task is found: by one gradient, by several that halve the tasks each, by running every task."
    return ["## The task of a batch among many", "", text, "", markdown_table(header, rows)]


def _variants(results: Mapping[str, Any]) -> list[str]:
    counts = sorted({row["count"] for row in results["variants"]})
    names = dict.fromkeys(row["variant"] for row in results["variants"])
    found = {name: by_count(at(results["variants"], variant=name), "accuracy") for name in names}
    rows = [[name, *(_cell(points.get(count)) for count in counts)] for name, points in found.items()]
    density = results["variants"][0]["density"]
    return ["## Variants", "", markdown_table([f"density {density:g}", *map(str, counts)], rows)]


def _overlap(results: Mapping[str, Any], densities: Sequence[float]) -> list[str]:
    layers = list(dict.fromkeys(row["layer"] for row in results["overlaps"]))
    kinds = dict.fromkeys(row["kind"] for row in results["overlaps"])
    rows = []
    for kind in kinds:
        for density in densities:
            here = [at(results["overlaps"], kind=kind, density=density, layer=layer) for layer in layers]
            rows.append([kind, f"{density:g}", *(f"{statistics.fmean(row['overlap'] for row in found):.2f}" for found in here)])
    text = "Ones in common, relative to chance: 1 for independent masks, 1 / density for equal ones."
    return ["## Overlap of masks", "", text, "", markdown_table(["masks", "density", *layers], rows)]


def _storage(results: Mapping[str, Any]) -> list[str]:
    header = ["density", "mask as the paper counts", "coded", "entropy", "whole file", "files of combinations"]
    rows = []
    for row in results["storage"]:
        alphas = ", ".join(f"{entry['count']}: {entry['file_bytes']:,}" for entry in row["combined"])
        sizes = [f"{round(row[key]):,}" for key in ("as_the_paper_counts", "coded_bytes", "entropy_bytes", "file_bytes")]
        rows.append([f"{row['density']:g}", *sizes, alphas])
    return ["## Bytes", "", markdown_table(header, rows)]


def _table_2(results: Mapping[str, Any]) -> list[str]:
    header = ["data", "network", "mask KiB", "coefficients", "Φ KiB", "savings", "printed"]
    rows = [
        [
            row["data"],
            row["network"],
            f"{row['mask_kib']:,.1f}",
            f"{row['alphas']:,}",
            f"{row['task_kib']:,.2f}",
            f"{row['savings']:.2f}",
            ", ".join(f"{value:,}" for value in row["printed"]),
        ]
        for row in results["table_2"]
    ]
    return ["## Table 2 of the paper, computed", "", markdown_table(header, rows)]


def _cell(values: Sequence[float] | None) -> str:
    """A mean over seeds, and with several their standard deviation."""
    if values is None:
        return DASH
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return _percent(statistics.fmean(values)) + spread


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
