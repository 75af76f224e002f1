"""From the rows of a study to its summary, its bytes and table 2."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from img2img.files.paths import expanded
from img2img.masks.storage import read_header
from img2img.research.impresslearn.numbered_tasks import NumberedTasks
from img2img.research.impresslearn.options import Study
from img2img.research.impresslearn.table2 import TABLE_2

Row = Mapping[str, Any]


def summarise(study: Study, family: NumberedTasks, results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the new tasks in the form of every suite's `summary.json`.

    A method is a number of impressions of one kind, or SupSup's own masks, at one density: `heterogeneous_100_d0.1`,
    `supsup_d0.1`. `bytes` is the task's file, without the basis, which is shared, and the same for all its tasks.
    """
    grouped: dict[str, dict[int, list[Row]]] = {}
    for row in (*results["own"], *results["combined"]):
        method = f"{row['kind']}_{row['count']}" if "kind" in row else "supsup"
        grouped.setdefault(f"{method}_d{row['density']:g}", {}).setdefault(row["task"], []).append(row)

    def name(number: int) -> str:
        return f"{family.name}_{family.label(number)}"

    def entry(rows: Sequence[Row]) -> dict[str, Any]:
        values = [row["accuracy"] for row in rows]
        std = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "std": std, "seeds": len(values), "bytes": max(row["bytes"] for row in rows)}

    return {
        "suite": study.name,
        "commit": results["environment"]["commit"],
        "hardware": results["environment"]["device"],
        "tasks": [
            {"name": name(number), "metric": "top-1", "higher_is_better": True, "trivial": results["majority"]}
            for number in study.new_numbers()
        ],
        "methods": {
            method: {name(number): entry(rows) for number, rows in by_task.items()} for method, by_task in grouped.items()
        },
    }


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


def table_rows() -> list[dict[str, Any]]:
    """Table 2 computed, beside what is printed."""
    return [
        {
            "data": row.data,
            "network": row.network,
            "mask_kib": row.mask,
            "alphas": row.alphas,
            "task_kib": row.task,
            "savings": row.savings,
            "printed": list(row.printed),
        }
        for row in TABLE_2
    ]
