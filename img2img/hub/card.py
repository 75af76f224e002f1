"""The model card of a bundle: what its files, and those of its run, say; no number that is not in them."""

import inspect
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from img2img.backbones import BACKBONES
from img2img.bundle import read_bundle, task_path
from img2img.data import DATA
from img2img.errors import InputError
from img2img.files.untrusted import mapping, naming
from img2img.files.yaml import read_yaml
from img2img.formatting import DASH, count, duration, number
from img2img.masks import METHODS
from img2img.masks.storage import read_header
from img2img.registry import Registry
from img2img.tasks import TASKS
from img2img.tasks.stored import check_info, stored_baseline, stored_task
from img2img.validation import Number, Stored, as_model

_PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}
"""The Hub's name for what a kind of task does; of the others it is "image-to-image"."""


_METRICS = {"mIoU": "mean_iou", "MSE": "mse", "top-1": "accuracy"}
"""The Hub's names of metrics that it knows."""


def model_card(
    folder: Path,
    *,
    name: str,
    results: Mapping[str, Any] | None,
    run: Path | None,
    license: str | None,
    notes: str | None = None,
) -> Any:
    """The card, a `huggingface_hub.ModelCard`.

    Args:
        folder: a bundle.
        name: what the example loads.
        results: the contents of the run's `results.json`, or None.
        run: the run's folder, for the data of its tasks; None for none.
        license: of the weights, or None.
        notes: Markdown for the end of the card, such as the terms of the training images.

    Raises:
        InputError: the results are of another backbone, or a file cannot be read.
    """
    from huggingface_hub import ModelCard, ModelCardData

    description = read_bundle(folder)
    if results is not None:
        _check(results)
    if results is not None and results.get("backbone", {}).get("sha256") != description["sha256"]:
        raise InputError("the results are those of another backbone than the bundle's: give those of the same run, or none")
    headers = {task: read_header(task_path(folder, task)) for task in description["tasks"]}
    for task, header in headers.items():
        check_info(task_path(folder, task), header["info"])
    config = _config(run)
    rows = [_row(folder, task, header, results, config) for task, header in headers.items()]
    pipelines = {row["pipeline"] for row in rows}
    kinds = dict.fromkeys(row["kind"] for row in rows)
    evaluations = _evaluations(rows)
    data = ModelCardData(
        license=license,
        library_name="img2img",
        pipeline_tag=pipelines.pop() if len(pipelines) == 1 else "image-to-image",
        tags=["img2img", "continual-learning", "masks", *kinds],
        metrics=list(dict.fromkeys(e.metric_type for e in evaluations)) or None,
        model_name=name.split("/")[-1],
        eval_results=evaluations or None,
    )
    text = "\n".join(
        (
            f"# {_one_line(name.split('/')[-1])}\n",
            *_what(folder, description, rows, config),
            *_metrics(rows, results),
            *_use(name, rows, _own_modules(description, headers)),
            *_training(rows, results),
            *_data(rows),
            *_limits(rows, license),
            *([] if notes is None else ["", notes.strip()]),
        )
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


class _ShownTask(Stored):
    name: str = ""
    baseline: Number | None = None
    test_images: Number | None = None
    train_seconds: Number | None = None
    steps: Number | None = None


class _ShownForgetting(Stored):
    max_abs_output_change: Number | None = None


class _Shown(Stored):
    """What the card shows of results, which may be no more than that."""

    backbone: dict[str, Any] = Field(default_factory=dict)
    tasks: list[_ShownTask] = Field(default_factory=list)
    forgetting: _ShownForgetting = _ShownForgetting()
    environment: dict[str, Any] = Field(default_factory=dict)


def _check(results: Mapping[str, Any]) -> None:
    """Refuse results of which a part that the card shows is of another type than a run writes."""
    remedy = "run the experiment again, which writes its results.json anew, or share the bundle alone"
    as_model(_Shown, results, "the results", remedy=remedy)


def _row(
    folder: Path, task: str, header: Mapping[str, Any], results: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of one task: its file says most, and the run the rest, unless another task has that name by now."""
    with naming(task_path(folder, task)):
        known = stored_task(header["info"])
    kind = known.kind
    entries: list[dict[str, Any]] = (results or {}).get("tasks", [])
    entry = next((entry for entry in entries if entry.get("name") == task), {})
    value = header["info"].get("figures", {}).get(known.metric)
    by_run = results is None or (bool(entry) and _alike(entry.get("value"), value))
    data = mapping(mapping(mapping(config.get("tasks")).get(task)).get("data")) if by_run else {}
    return {
        "task": task,
        "kind": kind,
        "pipeline": _PIPELINES.get(kind, "image-to-image"),
        "method": _method(header["method"]),
        "metric": known.metric,
        "arrow": "↑" if known.higher_is_better else "↓",
        "value": value,
        "by_run": by_run,
        "data_kind": data.get("kind"),
        "data": _data_text(data),
        "baseline": _if_number(entry.get("baseline") if by_run and entry else stored_baseline(known, header["info"])),
        "baseline_name": known.baseline_name,
        "test_images": _if_number(entry.get("test_images")) if by_run else None,
        "bytes": task_path(folder, task).stat().st_size,
        "classes": [_one_line(name) for name in getattr(known, "classes", ())],
    }


def _alike(a: Any, b: Any) -> bool:
    """Whether two values of a metric are the same measurement; None stands for one without a value."""
    if a is None or b is None:
        return a is b
    return _if_number(a) is not None and math.isclose(a, b, rel_tol=1e-6)


def _network_name(spec: Mapping[str, Any]) -> str:
    """A short name such as "unet tu-tf_efficientnet_lite0"."""
    parts = " ".join(str(spec[key]) for key in ("arch", "encoder", "name") if spec.get(key)) or str(spec.get("kind"))
    return _one_line(parts)


def _method(method: Mapping[str, Any]) -> str:
    inner = mapping(method["options"].get("method"))
    return _one_line(f"{inner.get('name')}, some weights trained" if method["name"] == "mixed" and inner else method["name"])


def _evaluations(rows: list[dict[str, Any]]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=row["pipeline"],
            task_name=row["task"],
            dataset_type=str(row["data_kind"] or "unknown"),
            dataset_name=row["data"] or f"test images of the task {row['task']}",
            dataset_config=row["task"],  # without it the Hub's format merges tasks on one kind of data
            dataset_split="test",
            metric_type=_METRICS.get(row["metric"], row["metric"]),
            metric_name=f"{row['metric']} {row['arrow']}",
            metric_value=row["value"],
        )
        for row in rows
        if row["value"] is not None
    ]


def _what(folder: Path, description: Mapping[str, Any], rows: list[dict[str, Any]], config: Mapping[str, Any]) -> list[str]:
    size = (folder / "backbone.safetensors").stat().st_size
    weights = mapping(config.get("backbone")).get("weights")
    published = isinstance(weights, str) and (weights == "imagenet" or weights.startswith("package:"))  # any other is a path
    origin = f" It started from the weights `{weights}`." if published and _is_plain(weights) else ""
    return [
        f"One frozen network, {len(rows)} image task{'s' * (len(rows) != 1)}, made with "
        "img2img: each task has a mask over the network's weights, normalisation state and a head of its own, in a file of its "
        "own. The caller names the task.\n",
        f"The network is `{_network_name(description['spec'])}`, {size:,} bytes.{origin} SHA-256 of its values: "
        f"`{_one_line(description['sha256'])}`.\n",
    ]


def _metrics(rows: list[dict[str, Any]], results: Mapping[str, Any] | None) -> list[str]:
    lines = [
        "| task | kind | method | metric | value | baseline | test images | file, bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        baseline = DASH if row["baseline"] is None else f"{number(row['baseline'])} ({row['baseline_name']})"
        value, tested = number(row["value"]), count(row["test_images"] or None)
        lines.append(
            f"| {row['task']} | {row['kind']} | {row['method']} | {row['metric']} {row['arrow']} | {value} | {baseline} | "
            f"{tested} | {row['bytes']:,} |"
        )
    lines.append("\nValues are those of the test images, as the training run measured them and stored them in the files.\n")
    change = _if_number(mapping((results or {}).get("forgetting")).get("max_abs_output_change"))
    measured = [row["task"] for row in rows if row["by_run"]]
    if change is not None and measured:
        which = "" if len(measured) == len(rows) else f", of the run that learned {', '.join(measured)}"
        lines.append(f"Largest change of any earlier task's output while later ones were learned{which}: {number(change)}.\n")
    return lines


def _training(rows: list[dict[str, Any]], results: Mapping[str, Any] | None) -> list[str]:
    """How long the run trained the tasks that are here, and on what; nothing where no results say so."""
    shown = _Shown.model_validate(results or {})
    names = {row["task"] for row in rows if row["by_run"]}
    here = [task for task in shown.tasks if task.name in names]
    tasks = [(_one_line(task.name), task.steps, task.train_seconds) for task in here]
    known = [(name, steps, seconds) for name, steps, seconds in tasks if steps is not None and seconds is not None]
    if not known:
        return []
    steps, seconds = sum(steps for _, steps, _ in known), sum(seconds for *_, seconds in known)
    where = [f"{key} {_one_line(shown.environment[key])}" for key in ("device", "torch", "commit") if shown.environment.get(key)]
    each = ", ".join(f"{name} {count(steps)}" for name, steps, _ in known)
    parts = [
        "; ".join([f"{count(steps)} steps in {duration(seconds)}", *([", ".join(where)] if where else [])]),
        f"Steps: {each}",
    ]
    if unknown := [name for name, steps, seconds in tasks if steps is None or seconds is None]:
        parts.append(f"Not counted, since the results do not say how long they were trained: {', '.join(unknown)}")
    return ["## Training\n", ". ".join(parts) + ".\n"]


def _own_modules(description: Mapping[str, Any], headers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The modules of the author's own that define kinds which the bundle names, and which have to be imported first."""
    named: list[tuple[Registry[Any], Any]] = [(BACKBONES, description["spec"].get("kind"))]
    for header in headers.values():
        inner = mapping(header["method"]["options"].get("method")).get("name")  # of a mixed one
        named += [(TASKS, mapping(header["info"].get("task")).get("kind")), (METHODS, header["method"]["name"]), (METHODS, inner)]
    found = [registry.find(name).__module__ for registry, name in named if name in registry and not registry.has_own(name)]
    return list(dict.fromkeys(found))


def _use(name: str, rows: list[dict[str, Any]], own: list[str]) -> list[str]:
    task = rows[0]["task"] if rows else "TASK"
    text = json.dumps(name, ensure_ascii=False)  # Python reads it as it was, whatever quotes it has
    imports = [f"import {_one_line(module)}   # of the author's own: defines what this bundle is made of" for module in own]
    return [
        "## Use\n",
        "```python",
        "\n".join(["import img2img", *imports]) + "\n",
        f"model = img2img.from_pretrained({text})   # the path of this folder, or its repository on the Hub",
        "print(list(model.tasks))",
        f'model.run("{task}", "photo.jpg").save("result.png")',
        "```\n",
    ]


def _data(rows: list[dict[str, Any]]) -> list[str]:
    data = [f"- {row['task']}: {row['data']}" for row in rows if row["data"]]
    classes = [f"- {row['task']}: {', '.join(row['classes'])}" for row in rows if row["classes"]]
    lines = ["## Data\n", *(data or ["The files do not say which images the tasks learned from."]), ""]
    return [*lines, "Classes, by index:\n", *classes, ""] if classes else lines


def _limits(rows: list[dict[str, Any]], license: str | None) -> list[str]:
    missing = [row["task"] for row in rows if row["value"] is None]
    return [
        "## Limits\n",
        "- The metrics hold for images like the test images; nothing was measured on others.",
        "- The caller chooses the task; an image of another kind gets a result all the same.",
        *([f"- No metrics are stored for: {', '.join(missing)}."] if missing else []),
        *([] if license else ["- No licence was stated when this card was written; ask the author."]),
        "- Pre-trained weights and images keep the terms of their owners.",
    ]


# ---------------------------------------------------------------------- the run's config


def _config(run: Path | None) -> dict[str, Any]:
    path = None if run is None else run / "config" / "config.yaml"
    if path is None or not path.is_file():
        return {}
    return read_yaml(path, "the config of a run", resolve=False)


def _data_text(data: Mapping[str, Any]) -> str:
    """A task's data in one line, without paths, which stay private, relative ones too."""
    kind = data.get("kind")
    places = _PLACES | _path_options(kind)
    private = {key for key, value in data.items() if isinstance(value, str) and (key in places or _ENDS_AS_PLACE.search(key))}
    values = {key: value for key, value in data.items() if key != "kind" and key not in private and _is_plain(value)}
    details = ", ".join(f"{key} {value}" for key, value in values.items())
    return "" if kind is None else str(kind) + (f" ({details})" if details else "")


_PLACES = frozenset({
    "annotations", "classes", "data", "file", "folder", "images", "inputs", "labels", "masks", "match", "pairs", "path",
    "picture", "root", "sbd", "style", "suffix", "targets", "values", "voc", "weights",
})  # fmt: skip
"""Options of data whose texts are paths, or say how files are called."""
_ENDS_AS_PLACE = re.compile(r"_(root|dir|directory|path|file|folder|images|labels)$")


def _path_options(kind: Any) -> set[str]:
    """The options of a kind of data that may be paths by their types; none of a kind that is not known here."""
    if not isinstance(kind, str) or kind not in DATA:
        return set()
    parameters = inspect.signature(DATA.find(kind)).parameters.values()
    return {p.name for p in parameters if re.search(r"\bPath(Like)?\b", str(p.annotation))}


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str) and not any(c in str(value) for c in "/\\~\n|")


def _if_number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _one_line(text: Any) -> str:
    """Text of a file as part of a line of Markdown: without line ends, and with no sign that would begin something."""
    return re.sub(r"([\\`<>|\[\]])", r"\\\1", " ".join(str(text).split()))
