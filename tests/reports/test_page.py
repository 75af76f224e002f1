import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from img2img.errors import InputError
from img2img.reports import text
from img2img.reports.page import improvement, write_report
from img2img.tasks.segmentation import Segmentation
from img2img.training.results import read_results

NAMES = ("shapes", "landscape", "colour", "style-tissue", "style-hubble", "edges")
BASELINE = {
    "segmentation": ("mIoU", True, "majority class"),
    "colourisation": ("ab error", False, "grey copy"),
    "style": ("total style loss", False, "unstylised input"),
    "edges": ("MSE", False, "mean colour"),
}


Pairs = dict[str, tuple[float | None, float | None]]


def entry(name: str, kind: str, value: float, baseline: float, figures: Pairs) -> dict[str, Any]:
    metric, higher, baseline_name = BASELINE[kind]
    return {
        "name": name,
        "kind": kind,
        "primary_metric": metric,
        "higher_is_better": higher,
        "value": value,
        "baseline": baseline,
        "baseline_name": baseline_name,
        "comparisons": {},
        "before": baseline * (0.4 if higher else 1.7),
        "bytes": 912_344,
        "density": 0.8412,
        "train_seconds": 101.7,
        "steps": 400,
        "best_step": 400,
        "test_images": 96,
        "metrics": {metric: value} | {key: pair[0] for key, pair in figures.items()},
        "baseline_metrics": {metric: baseline} | {key: pair[1] for key, pair in figures.items()},
    }


def six_tasks() -> dict[str, Any]:
    """Results as of the demo; the figures are made up."""
    shapes = {"pixel accuracy": (0.9134, 0.6811), "IoU background": (0.9172, 0.6811)}
    shapes |= {f"IoU {name}": (0.55 + 0.05 * i, 0.0) for i, name in enumerate(("disk", "triangle", "square", "star", "ring"))}
    land = {"pixel accuracy": (0.9021, 0.4012), "IoU sky": (0.953, 0.4012), "IoU water": (0.71, 0.0), "IoU snow": (None, None)}
    images_of = {"SSIM": (0.9312, 0.9208), "PSNR": (25.9, 24.1)}
    style = {"style loss": (0.412, 3.62), "content loss": (0.66, 0.0), "total variation": (0.081, 0.058), "SSIM": (0.512, 1.0)}
    tasks = [
        entry("shapes", "segmentation", 0.7253657027154667, 0.11351055569118923, shapes),
        entry("landscape", "segmentation", 0.6342, 0.0802, land),
        entry("colour", "colourisation", 168.23, 241.87, {"delta E": (14.2, 18.9), "MSE": (302.1, 402.7), **images_of}),
        entry("style-tissue", "style", 1.0801, 3.6258, style),
        entry("style-hubble", "style", 0.8812, 5.1058, style),
        entry("edges", "edges", 1874.2, 4630.8, {"SSIM": (0.4921, 0.2213), "PSNR": (15.9, 11.8)}),
    ]
    tasks[0] |= {"density": None, "bytes": 360_256}
    tasks[1]["comparisons"] = {"decoder_only": {"value": 0.5918, "bytes": 3_104_512}}
    tasks[2]["comparisons"] = {"decoder_only": {"value": 181.4, "bytes": 3_104_256}}
    values = [task["value"] for task in tasks]
    return {
        "version": 2,
        "experiment": "demo",
        "backbone": {
            "name": "unet tu-tf_efficientnet_lite0",
            "mode": "first_task",
            "parameters": 4_312_345,
            "masked_parameters": 4_280_112,
            "copied_parameters": 31_337,
            "bytes": 17_402_112,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        "method": "piggyback",
        "method_options": {"threshold": 0.005, "init": 0.01, "start": "ones"},
        "tasks": tasks,
        "forgetting": {
            "value_matrix": [values[: t + 1] + [None] * (len(tasks) - t - 1) for t in range(len(tasks))],
            "max_abs_output_change": 0.0,
        },
        "transfer": {"average_skill": 0.5731, "backward": 0.0, "forward": -0.8214, "forgetting": 0.0},
        "environment": {
            "commit": "b54999d0c0ffee0c0ffee0c0ffee0c0ffee0c0ff (with uncommitted changes)",
            "device": "AMD EPYC 7B13, 2 threads",
            "python": "3.11.9",
            "torch": "2.11.0+cpu",
        },
    }


def one_task(name: str = "shapes_2-b") -> dict[str, Any]:
    results = six_tasks()
    results["tasks"] = [results["tasks"][0] | {"name": name}]
    results["forgetting"] = {"value_matrix": [[results["tasks"][0]["value"]]], "max_abs_output_change": 0.0}
    results["transfer"] |= {"backward": None, "forward": None, "forgetting": None}
    return results


def write_run(folder: Path, results: dict[str, Any]) -> Path:
    """A run folder with an image and a log for each task, a second log where the decoder alone was trained."""
    (folder / "images").mkdir(parents=True)
    (folder / "metrics").mkdir()
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    rng = np.random.default_rng(0)
    for task in results["tasks"]:
        pixels = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{task['name']}.png")
        for what, floor in ((task["name"], 1.0), (f"{task['name']}.decoder_only", 1.15)):
            if what != task["name"] and "decoder_only" not in task["comparisons"]:
                continue
            lines = [f"step,loss,rate,val {task['primary_metric']}"]
            rate = 120 if what == task["name"] else 190
            for step in range(20, 401, 20):
                loss = floor * (0.25 + 1.8 * np.exp(-step / 70)) + 0.04 * rng.normal()
                gone = np.exp(-step / rate)
                value = task["baseline"] * gone + task["value"] * (1 - gone)
                lines.append(f"{step},{loss},{1 - step / 400},{value if step % 100 == 0 else ''}")
            (folder / "metrics" / f"{what}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


class Page(HTMLParser):
    """A page taken apart; fails on a tag that is not closed or closed out of order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []
        self.cells = [[" ".join(cell.split()) for cell in cells] for cells in self.cells]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> while {self.open} are open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, start: str) -> list[str]:
        return next(cells for cells in self.cells if cells and cells[0].startswith(start))

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def report(folder: Path, results: dict[str, Any]) -> Page:
    return Page(write_report(write_run(folder, results)).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("run") / "demo"
    return folder, report(folder, six_tasks())


def test_the_page_is_well_formed_and_its_ids_are_unique(demo: tuple[Path, Page]) -> None:
    _, page = demo
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {f"task-{i}" for i in range(1, 7)} <= set(ids)


def test_the_page_loads_nothing_and_runs_nothing(demo: tuple[Path, Page]) -> None:
    folder, page = demo
    source = (folder / "report.html").read_text(encoding="utf-8")
    ids = set(page.attributes("id"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "xlink:href"):
            assert (attrs.get(name) or "#task-1")[1:] in ids, (tag, attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
        assert not {"srcset", "poster", "background", "action"} & attrs.keys()
    # What is left of "url(" points into the page; names of XML namespaces are no addresses that are loaded.
    assert all(target[1:] in ids for target in re.findall(r"url\(([^)]*)\)", source))
    assert set(re.findall(r"https?://[^\s\"'<>]+", source)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in source
    assert str(folder) not in source


def test_every_task_shows_its_own_image_whole(demo: tuple[Path, Page]) -> None:
    folder, page = demo
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 6
    for name, attrs in zip(NAMES, images, strict=True):
        uri, alt = attrs["src"], attrs["alt"]
        assert uri is not None
        assert alt is not None
        head, data = uri.split(",", 1)
        blob = base64.b64decode(data, validate=True)
        assert head == "data:image/png;base64"
        assert name in alt
        assert blob == (folder / "images" / f"{name}.png").read_bytes()
        with Image.open(io.BytesIO(blob)) as image:
            image.load()
            assert (str(image.width), str(image.height)) == (attrs["width"], attrs["height"])


def test_the_table_gives_each_task_its_row(demo: tuple[Path, Page]) -> None:
    _, page = demo
    assert page.row("landscape segmentation")[1:] == [
        "mIoU ↑", "0.6342", "0.08020 majority class", "+691 %", "0.5918 3.10 MB", "84.1 %", "912 kB 5.24 %",
        "1 min 42 s 400 steps", "96",
    ]  # fmt: skip
    assert page.row("shapes segmentation")[5:8] == ["—", "—", "360 kB 2.07 %"]
    assert "tasks do better than their baselines6 of 6" in page.text
    edges = page.row("edges edges")
    assert edges[1:5] == ["MSE ↓", "1,874", "4,631 mean colour", "+59.5 %"]


def test_the_other_metrics_stand_beside_the_baselines(demo: tuple[Path, Page]) -> None:
    _, page = demo
    assert ["delta E ↓", "14.20", "18.90"] in page.cells
    assert ["ab error ↓ primary", "168.2", "241.9"] in page.cells
    assert ["snow", "—", "—"] in page.cells
    assert ["triangle", "0.6000", "0"] in page.cells


def test_classes_have_the_colours_of_the_images(demo: tuple[Path, Page]) -> None:
    folder, _ = demo
    source = (folder / "report.html").read_text(encoding="utf-8")
    task = Segmentation(classes=("background", "disk", "triangle", "square", "star", "ring"))
    pixels = task.to_image(torch.arange(6).view(1, 2, 3), torch.zeros(1, 3, 2, 3)).mul(255).round().int()[0].flatten(1).T.tolist()
    for name, rgb in zip(task.classes, pixels, strict=True):
        assert f'<span class="swatch" style="background: #{bytes(rgb).hex()}"></span>{name}<' in source


def test_every_task_has_a_learning_curve_and_the_compared_ones_have_two_lines(demo: tuple[Path, Page]) -> None:
    folder, page = demo
    source = (folder / "report.html").read_text(encoding="utf-8")
    curves = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(curves) == 6
    # Two panels each, and the ring: a line in the task's colour for loss and validation.
    dashed = [curve.count("stroke-dasharray") for curve in curves]
    assert [count > 0 for count in dashed] == [False, True, True, False, False, False]
    assert all("var(--first)" in curve and "#0102" not in curve for curve in curves)
    assert "ab error, validation" in page.text


def test_the_ring_is_in_the_last_of_a_tasks_trainings(tmp_path: Path) -> None:
    results = one_task("shapes")
    folder = write_run(tmp_path / "run", results)

    def ring(**changes: Any) -> str | None:
        results["tasks"][0] |= changes
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        source = write_report(folder).read_text(encoding="utf-8")
        said = re.search(r"The ring is (step \d+), whose weights were kept(.*?)\.", source)
        assert ("stroke-width: 1.4" in source) == (said is not None)
        return None if said is None else said[1] + said[2]

    best = ": the best on the validation images"
    assert ring(best_step=400) == f"step 400{best}"
    assert ring(best_step=100) == "step 100", "with validation.keep=last another may be the best"
    # 400 steps, then 200 more of which the hundredth was kept, as PackNet trains.
    log = "step,loss,val mIoU\n100,0.3,0.61\n200,0.2,0.6\n"
    (folder / "metrics" / "shapes.retrain.csv").write_text(log, encoding="utf-8")
    assert ring() == ring(val=0.61) == f"step 500{best} in the last of the task’s trainings"
    assert ring(val=0.5) is None, "the log is of another training"
    assert ring(val=None, best_step=300) is None
    assert ring(best_step=None) is None
    (folder / "metrics" / "shapes.joint.csv").write_text("step,loss,val mean skill\n100,0.3,0.5\n", encoding="utf-8")
    assert ring(best_step=100) is None, "all tasks were trained at once after it"


def test_the_forgetting_matrix_marks_what_equals_the_diagonal(demo: tuple[Path, Page]) -> None:
    _, page = demo
    matrix = [cells for cells in page.cells if len(cells) == 7]
    assert matrix[0][2] == "landscape mIoU ↑"
    assert matrix[3] == ["colour", "0.7254 = same", "0.6342 = same", "168.2", "", "", ""]
    assert matrix[6][6] == "1,874"
    assert "All 15 values below the diagonal equal it exactly" in page.text
    assert "the outputs are the same, bit for bit" in page.text


def test_a_baseline_of_0_is_beaten_and_an_equal_value_is_neither_good_nor_bad(tmp_path: Path) -> None:
    results = six_tasks()
    results["tasks"][0]["baseline"] = 0.0  # a score above it
    results["tasks"][2] |= {"value": 0.5, "baseline": 0.0}  # an error above it
    results["tasks"][3]["baseline"] = results["tasks"][3]["value"]
    page = report(tmp_path / "run", results)
    assert "tasks do better than their baselines4 of 6" in page.text
    assert [page.row(name)[4] for name in ("shapes", "colour", "style-tissue", "edges")] == ["—", "—", "0 %", "+59.5 %"]
    classes = [attrs.get("class") for tag, attrs in page.tags if tag == "td"]
    assert (classes.count("good"), classes.count("bad")) == (3, 0)


@pytest.mark.parametrize(("method", "fixed"), [("piggyback", True), ("finetune", True), ("sequential", False), ("mine", False)])
def test_that_nothing_can_change_is_said_of_methods_that_cannot_forget_alone(tmp_path: Path, method: str, fixed: bool) -> None:
    results = six_tasks() | {"method": method}
    results["forgetting"]["remeasured"] = "end"
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert ("What a task runs with cannot change any more, so every earlier task was measured" in page.text) is fixed
    assert ("Every earlier task was measured again on its test images after the last one." in page.text) is not fixed


def test_a_value_that_moved_by_the_last_bit_is_not_called_the_same(tmp_path: Path) -> None:
    results = six_tasks()
    matrix = results["forgetting"]["value_matrix"]
    matrix[3][1] = float(np.nextafter(matrix[1][1], 0))
    matrix[4][2] = matrix[2][2] + 30
    matrix[5][0] = None
    results["forgetting"]["max_abs_output_change"] = 1e-7
    page = report(tmp_path / "run", results)
    rows = [cells for cells in page.cells if len(cells) == 7]
    assert rows[4][2].startswith("0.6342 ≠ −1.11e−16")
    assert rows[5][3] == "198.2 ≠ +30.00"
    assert rows[6][1] == "—"
    assert "12 of 14 values below the diagonal equal it exactly; 2 do not" in page.text
    assert "1e−07 : the outputs are not the same" in page.text.replace("1e−07:", "1e−07 :")
    bad = [attrs for tag, attrs in page.tags if tag == "td" and attrs.get("class") == "bad"]
    assert len(bad) == 2  # a lower score and a higher error


def test_sizes_are_set_against_one_network_a_task(demo: tuple[Path, Page]) -> None:
    _, page = demo
    total = 17_402_112 + 360_256 + 5 * 912_344
    assert f"take {total / 1e6:.1f} MB; one network a task would take 104 MB" in page.text
    assert f"{6 * 17_402_112 / total:.1f} times as much" in page.text
    widths = [float(style[7:-1]) for style in page.attributes("style") if re.fullmatch(r"width: [\d.]+%", style)]
    assert len(widths) == 9
    assert widths[-1] == 100
    assert widths[0] == pytest.approx(100 / 6, abs=1e-3)


def test_the_setup_is_on_the_page(demo: tuple[Path, Page]) -> None:
    _, page = demo
    results = six_tasks()
    for part in (results["backbone"]["sha256"], results["environment"]["commit"], "4,312,345, of which masks cover 4,280,112"):
        assert part in page.text
    assert "each masked task trains a copy of 31,337" in page.text
    assert "piggyback (threshold 0.005, init 0.01, start ones)" in page.text


def test_the_same_run_gives_the_same_page(demo: tuple[Path, Page]) -> None:
    folder, _ = demo
    before = (folder / "report.html").read_bytes()
    assert write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_bytes() == before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_one_task_alone_has_nothing_to_forget(tmp_path: Path) -> None:
    page = report(tmp_path / "run", one_task())
    assert "shapes_2-b" in page.text
    assert "One frozen network, one image task" in page.text
    assert "There is one task only" in page.text
    assert "Decoder only is" not in page.text
    assert not [attrs for tag, attrs in page.tags if tag == "table" and attrs.get("class") == "matrix"]
    assert page.row("Backward transfer")[1] == "—"


def test_the_schemas_own_keys_are_enough(tmp_path: Path) -> None:
    results = six_tasks()
    more = {"baseline_name", "comparisons", "before", "steps", "best_step", "metrics", "baseline_metrics"}
    bare = {
        "version": 2,
        "backbone": {key: results["backbone"][key] for key in ("name", "parameters", "sha256")},
        "method": "piggyback",
        "tasks": [{key: value for key, value in task.items() if key not in more} for task in results["tasks"]],
        "forgetting": results["forgetting"],
    }
    (tmp_path / "results.json").write_text(json.dumps(bare), encoding="utf-8")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.row("landscape segmentation")[7] == "912 kB"
    assert page.text.count("No image was saved") == page.text.count("No training log was found") == 6
    assert not [tag for tag, _ in page.tags if tag in ("img", "svg")]


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    results = six_tasks()
    folder = write_run(tmp_path / "run", results)
    for key in ("value", "density", "bytes", "train_seconds", "test_images", "steps"):
        results["tasks"][2][key] = None
    results["tasks"][2]["comparisons"]["decoder_only"] = {"value": None, "bytes": None}
    results["tasks"][2] |= {"best_step": None, "baseline_name": None}
    results["tasks"][3]["baseline"] = None
    results["forgetting"]["max_abs_output_change"] = None
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "baselines4 of 6" in page.text
    assert page.row("colour colourisation")[2:] == ["—", "241.9", "—", "—", "—", "—", "—", "—"]
    assert page.row("style-tissue style")[2:5] == ["1.080", "— unstylised input", "—"]
    assert "The sizes are not known" in page.text


def test_everything_from_the_results_is_escaped(tmp_path: Path) -> None:
    results = one_task("<b>&\"x'")
    results |= {"experiment": "<script>alert(1)<\\/script>", "method_options": {"<i>": "<u>"}, "environment": {"device": "<s>"}}
    results["tasks"][0] |= {"primary_metric": "a<b$_$", "baseline_name": "<em>", "kind": "<kind>"}
    page = report(tmp_path / "run", results)
    assert not {"b", "script", "i", "u", "s", "kind"} & {tag for tag, _ in page.tags}
    for part in ("<b>&\"x'", "<script>alert(1)", "<u>", "<s>", "a<b$_$, validation"):
        assert part in page.text
    assert any(alt.startswith("Test images of <b>&\"x'") for alt in page.attributes("alt"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r.pop("tasks"), "lacks tasks"),
        (lambda r: r.update(version=1), "version 1: expected 2"),
        (lambda r: r.update(tasks=[]), "has no tasks"),
        (lambda r: r["tasks"][1].pop("baseline"), r"tasks\[1\] lacks baseline"),
        (lambda r: r["tasks"][1].update(value="0.5"), r"tasks\[1\]\.value.*number.*'0.5'"),
        (lambda r: r["tasks"][1].update(value=True), r"tasks\[1\]\.value"),
        (lambda r: r["tasks"][1].update(name="../x"), r"the name '../x'"),
        (lambda r: r["tasks"][1].update(metrics={"SSIM": []}), r"metrics\.SSIM: expected a number"),
        (lambda r: r["tasks"].append(3), r"tasks\[6\]: expected an object"),
        (lambda r: r["forgetting"]["value_matrix"].pop(), "expected 6 rows of 6 numbers"),
        (lambda r: r["forgetting"]["value_matrix"][2].pop(), "expected 6 rows of 6 numbers"),
        (lambda r: r["backbone"].pop("sha256"), "backbone lacks sha256"),
        (lambda r: r["backbone"].update(bytes=-1), r"backbone\.bytes.*0 or more.*-1"),
        (lambda r: r.update(shared_bytes="many"), "shared_bytes.*number.*'many'"),
        (lambda r: r["environment"].update(device=["a"]), r"environment\.device.*text"),
        (lambda r: r["tasks"][1].update(steps=10**400), "a number of 401 digits"),
        (lambda r: r["tasks"][1].update(name="x" * 300), "expected a task's name"),
        (lambda r: r["tasks"][1].update(metrics={"\ud800": 1}), "is not valid JSON"),
    ],
)
def test_results_of_another_shape_are_refused_with_the_place(tmp_path: Path, spoil: Any, said: str) -> None:
    results = six_tasks()
    spoil(results)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        write_report(tmp_path)
    assert "run the experiment" in str(error.value) or "write it again" in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_missing_and_broken_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder.*finished run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no results.json.*finished run"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"version": 2,', encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(one_task() | {"seed": float("nan")}), encoding="utf-8")
    with pytest.raises(InputError, match=r"NaN is no JSON.*write it again"):
        read_results(tmp_path)


def test_a_broken_image_or_log_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", one_task("a"))
    image_of, log = folder / "images" / "a.png", folder / "metrics" / "a.csv"
    whole = image_of.read_bytes()
    for broken in (b"no image", whole[: len(whole) // 2]):
        image_of.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.png .*PNG .*delete it"):
            write_report(folder)
    image_of.write_bytes(whole)
    for broken in ("step,loss\n1,x\n", "a,b\n1,2\n", "step,loss\n1\n,2\n"):
        log.write_text(broken, encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.csv .*training log .*delete it"):
            write_report(folder)
    log.write_text("step,loss,rate,val mIoU\n", encoding="utf-8")
    assert "No training log was found" in Page(write_report(folder).read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "expected"),
    [(0.6, 0.4, True, 0.5), (60.0, 100.0, False, 0.4), (120.0, 100.0, False, -0.2), (-0.1, -0.2, True, 0.5),
     (0.5, 0.0, True, None), (None, 1.0, True, None), (1.0, None, False, None)],
)  # fmt: skip
def test_improvement_is_relative_to_the_baseline(value: Any, baseline: Any, higher: bool, expected: float | None) -> None:
    found = improvement(value, baseline, higher_is_better=higher)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (text.number, None, "—"), (text.number, 0.0, "0"), (text.number, 0.5, "0.5000"), (text.number, -0.123456, "−0.1235"),
        (text.number, 447480.0, "447,480"), (text.number, 999.97, "1,000"), (text.number, 1.5e-5, "1.5e−05"),
        (text.signed, 2.0, "+2.000"), (text.signed, None, "—"), (text.signed, float("inf"), "—"), (text.gain, float("inf"), "—"),
        (text.signed, 0.0, "0"), (text.gain, None, "—"), (text.percent, 0.0123, "1.23 %"), (text.percent, 0.5, "50.0 %"),
        (text.percent, 0.9999, "100 %"), (text.percent, 0.0, "0 %"), (text.gain, 5.39, "+539 %"), (text.gain, -0.5, "−50.0 %"),
        (text.size, 56_400_000, "56.4 MB"), (text.size, 999, "999 bytes"), (text.size, 999_900, "1.00 MB"),
        (text.size, 338.4e6, "338 MB"),
        (text.duration, 4.24, "4.2 s"), (text.duration, 59.9, "1 min 0 s"), (text.duration, 84.2, "1 min 24 s"),
        (text.duration, 7199, "2 h 0 min"), (text.count, 24_400_000, "24,400,000"), (text.spelled, 13, "13"),
    ],
)  # fmt: skip
def test_numbers_are_shown_as_people_read_them(show: Any, value: float | None, expected: str) -> None:
    assert show(value) == expected


def test_the_page_of_a_comparison_method_speaks_of_no_mask(tmp_path: Path) -> None:
    results = six_tasks() | {"method": "finetune", "method_options": {}, "shared_bytes": 0}
    for task in results["tasks"]:
        task |= {"density": None, "bytes": 17_402_112}
    text = report(tmp_path / "run", results).text
    assert "Each task trained a copy of the backbone, all of it." in text
    assert "One frozen network" not in text
    assert "mask over the backbone" not in text
    assert "mask method" not in text
    assert "take 104 MB; one network a task would take 104 MB" in text, "nothing is shared"
