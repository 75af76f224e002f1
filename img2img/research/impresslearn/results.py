"""`results.json` of a study: its schema, and from its rows the summary and the bytes, beside the paper's table 2."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from img2img.files.json_files import read_json
from img2img.files.paths import expanded
from img2img.masks.storage import read_header
from img2img.research.impresslearn.numbered_tasks import NumberedTasks
from img2img.research.impresslearn.options import Study
from img2img.research.suites.schema import Summary, SummaryCell, SummaryTask
from img2img.validation import Number, Stored, as_model

Row = Mapping[str, Any]
VERSION: Literal[1] = 1
"""Of `results.json`."""


# ------------------------------------------------------------------ the schema


class _Row(Stored):
    seed: int
    density: Number


class _Accuracy(_Row):
    task: int
    accuracy: Number


class _Combination(_Accuracy):
    kind: str
    count: int


class _Variant(_Accuracy):
    variant: str
    count: int


class _Overlap(_Row):
    kind: str
    layer: str
    overlap: Number


class _BasisTask(_Row):
    count: int
    own: Number
    alpha: Number
    alpha_finds: bool
    one_shot: Number
    one_shot_finds: Number
    every_mask: Number
    every_mask_finds: Number


class _Inference(_Row):
    kind: str = "heterogeneous"  # the only one of earlier results
    tasks: int
    count: int
    epochs: int
    batches: int
    one_shot: Number
    halving: Number
    every_task: Number
    accuracy: Number


class _CombinationBytes(Stored):
    count: int
    file_bytes: Number


class _Bytes(Stored):
    density: Number
    as_the_paper_counts: Number
    coded_bytes: Number
    entropy_bytes: Number
    file_bytes: Number
    combined: list[_CombinationBytes]


class _PaperRow(Stored):
    data: str
    network: str
    mask_kib: Number
    alphas: int
    task_kib: Number
    savings: Number
    printed: list[Number]


class _Name(Stored):
    name: str


class _Environment(Stored):
    commit: str | Number | None
    device: str | Number | None
    torch: str | Number | None


class _StudyResults(Stored):
    """What the report needs of `results.json`."""

    version: Literal[1]
    study: _Name
    environment: _Environment
    majority: Number
    own: Annotated[list[_Accuracy], Field(min_length=1)]
    wrong: list[_Accuracy]
    overlaps: list[_Overlap]
    combined: list[_Combination]
    basis: list[_BasisTask] = Field(default_factory=list)
    inference: list[_Inference] = Field(default_factory=list)
    variants: list[_Variant] = Field(default_factory=list)
    storage: list[_Bytes]
    table_2: list[_PaperRow]


def read_study_results(folder: Path) -> Row:
    """`results.json` of a study's folder, checked.

    Raises:
        InputError: there is none, or it is not what a study writes; names the place at fault.
    """
    results = read_json(folder / "results.json")
    as_model(_StudyResults, results, str(folder / "results.json"), remedy="run the study again, which writes it anew")
    found: Row = results
    return found


# ------------------------------------------------------------------ from rows


def summarise(study: Study, family: NumberedTasks, results: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracies of the new tasks in the form of every suite's `summary.json`.

    A method is a number of basis masks of one kind, or SupSup's own masks, at one density: `heterogeneous_100_d0.1`,
    `supsup_d0.1`. `bytes` is the task's file, without the basis, which is shared, and the same for all its tasks.
    """
    grouped: dict[str, dict[int, list[Row]]] = {}
    for row in (*results["own"], *results["combined"]):
        method = f"{row['kind']}_{row['count']}" if "kind" in row else "supsup"
        grouped.setdefault(f"{method}_d{row['density']:g}", {}).setdefault(row["task"], []).append(row)

    def name(number: int) -> str:
        return f"{family.name}_{family.label(number)}"

    def entry(rows: Sequence[Row]) -> SummaryCell:
        values = [row["accuracy"] for row in rows]
        std = statistics.stdev(values) if len(values) > 1 else None
        return SummaryCell(mean=statistics.fmean(values), std=std, seeds=len(values), bytes=max(row["bytes"] for row in rows))

    summary = Summary(
        suite=study.name,
        commit=results["environment"]["commit"],
        hardware=results["environment"]["device"],
        tasks=[
            SummaryTask(name=name(number), primary_metric="top-1", higher_is_better=True, baseline=results["majority"])
            for number in study.new_numbers()
        ],
        methods={
            method: {name(number): entry(rows) for number, rows in by_task.items()} for method, by_task in grouped.items()
        },
    )  # fmt: skip
    return summary.model_dump()


def stored_bytes(study: Study, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """What masks and coefficients take on disk, by density: means over masks of their coded bytes, and of whole files.

    Headers, checksums and names are in the files and not in the coded bytes.
    """
    found = []
    for density in study.densities:
        files = [
            path
            for seed in study.seeds
            for path in (expanded(study.out) / f"seed{seed}" / f"density{density:g}" / "supsup").glob("own_*.safetensors")
        ]
        headers = [read_header(path)["storage"] for path in files]
        alphas = {row["count"]: row["bytes"] for row in rows["combined"] if row["density"] == density and row["kind"] != "random"}
        found.append(
            {
                "density": density,
                "weights": headers[0]["weights"],
                "coded_bytes": statistics.fmean(header["coded_bytes"] for header in headers),
                "entropy_bytes": statistics.fmean(header["entropy_bits"] for header in headers) / 8,
                "file_bytes": statistics.fmean(path.stat().st_size for path in files),
                "as_the_paper_counts": density * headers[0]["weights"] * 2,
                "combined": [{"count": count, "file_bytes": size} for count, size in alphas.items()],
            }
        )
    return found


# ------------------------------------------------------------------ table 2

KIB = 1024
DENSITY = 0.125
"""Of the masks whose ones the paper lists, with 16 bits for each: "Mask Size is the space on disk ... as 16-bit integers"."""
INDEX_BITS = 16
ALPHA_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of ImpressLearn's table 2, as printed: what tasks take on disk as the paper counts it.

    Attributes:
        data: the dataset.
        tasks: how many tasks it can have at most; None for 784!, over which any basis costs nothing.
        network: the architecture.
        parameters: its weights, without biases.
        masks: the size of the basis, `|M|`, as the row counts it.
        layers: layers with coefficients.
        printed: the columns Mask (kB), Φ (kB) and C (x) of the paper.
    """

    data: str
    tasks: int | None
    network: str
    parameters: float
    masks: int
    layers: int
    printed: tuple[float, float, float]

    @property
    def mask(self) -> float:
        """KiB of one mask: the indices of 12.5 % of the weights. Indices of 16 bits tell no more than 65,536 weights apart,
        so a layer of more would need larger ones, or gaps in their place; the paper does not say.
        """
        return self.parameters * DENSITY * INDEX_BITS / 8 / KIB

    @property
    def alphas(self) -> int:
        """Coefficients of a task, `|α|`."""
        return self.masks * self.layers

    @property
    def task(self) -> float:
        """Φ, KiB of a task: its coefficients, and its share of the basis."""
        shared = 0.0 if self.tasks is None else self.masks * self.mask / self.tasks
        return shared + self.alphas * ALPHA_BYTES / KIB

    @property
    def savings(self) -> float:
        """C, how many times as much a task of SupSup takes."""
        return self.mask / self.task

    def plain(self) -> dict[str, Any]:
        """The row as `results.json` has it: computed, beside what is printed."""
        return {
            "data": self.data,
            "network": self.network,
            "mask_kib": self.mask,
            "alphas": self.alphas,
            "task_kib": self.task,
            "savings": self.savings,
            "printed": list(self.printed),
        }


_CIFAR, _IMAGENET = ("Split CIFAR-100", 20), ("ImageNet", 2100)

TABLE_2 = tuple(
    TableRow(data=data, tasks=tasks, network=network, parameters=parameters, masks=masks, layers=layers, printed=printed)
    for (data, tasks), network, parameters, masks, layers, printed in (
        (("Permuted MNIST", None), "LeNet 300-100", 266e3, 100, 3, (64.9, 1.17, 55.5)),
        (("Rotated MNIST", 359), "LeNet 300-100", 266e3, 5, 3, (64.9, 0.96, 67.4)),
        (_CIFAR, "ResNet-18", 6.2e6, 10, 21, (1513, 757.6, 1.99)),
        (_CIFAR, "Wide ResNet-18", 11.7e6, 10, 21, (2856, 1429, 1.99)),
        (_CIFAR, "Wide ResNet-34", 21.8e6, 10, 37, (5322, 2662, 1.99)),
        (_IMAGENET, "ResNet-50", 25.6e6, 75, 53, (6250, 238.7, 26.2)),
        (_IMAGENET, "ResNet-101", 44.5e6, 75, 104, (10864, 418.47, 25.9)),
        (_IMAGENET, "ResNet-152", 60.2e6, 75, 155, (14697, 570.31, 25.7)),
        # The paper lists 100 masks here, but its other columns count 75.
        (_IMAGENET, "pre-ResNet-200", 64.7e6, 75, 203, (15795, 623.6, 25.3)),
        (_IMAGENET, "VGG 16", 137.9e6, 75, 16, (33667, 1207, 27.89)),
        (_IMAGENET, "WRN-50-2-bottleneck", 68.9e6, 75, 53, (16821, 616.28, 27.2)),
    )
)
"""Table 2 of ImpressLearn. Parameters are as rounded there: of LeNet-300-100 it is 266,200."""
