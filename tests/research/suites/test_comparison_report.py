"""The page of a comparison, and what a store lacks or has damaged."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_suite import TASKS, Page, add_run, bare_suite, page_of, results, runs_of
from PIL import Image

from img2img.errors import InputError
from img2img.research.suites.comparison_page import write_comparison
from img2img.research.suites.schema import About, MethodInfo
from img2img.research.suites.store import describe_store
from img2img.research.suites.suite import read_suite
from img2img.research.suites.summary import finish

FIGURES = (
    "overview",
    "skill", "pairs", "pareto", "bytes", "quality_against_bytes", "time",
    "affected_by_task", "similarity_piggyback", "kappa_piggyback",
    "affected_by_layer_piggyback", "k_by_layer_piggyback", "kernels_by_layer_piggyback",
    *(f"forgetting_{label}" for label in ("piggyback", "finetune", "sequential")),
    *(f"{kind}_{task[0]}" for kind in ("curve", "grid") for task in TASKS),
)  # fmt: skip


# ------------------------------------------------------------------ the page and its figures


def test_every_figure_is_made_and_shows_something(made: tuple[Path, Path]) -> None:
    found = {path.stem: path for path in (made[1] / "figures").iterdir()}
    assert found.keys() == set(FIGURES)
    for name, path in found.items():
        with Image.open(path, formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("L"))
            colours = len(image.convert("RGB").getcolors(1 << 20))
            assert not {"Software", "date:create"} & image.info.keys()
        assert min(pixels.shape) > 100, name
        dark = (pixels < 128).mean()
        assert 0.001 < dark < 0.9, name
        assert colours > 10, name


def test_every_figure_is_on_the_page(made: tuple[Path, Path]) -> None:
    images = [attrs for tag, attrs in page_of(made[1]).tags if tag == "img"]
    assert len(images) == len(FIGURES)
    files = {path.read_bytes() for path in (made[1] / "figures").iterdir()}
    shown = 0
    for attrs in images:
        assert attrs["alt"]
        head, data = (attrs["src"] or "").split(",", 1)
        blob = base64.b64decode(data, validate=True)
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        shown += blob in files
        with Image.open(io.BytesIO(blob)) as image:
            image.load()
    assert shown == len(FIGURES) - 4  # the three grids and the overview are JPEG on the page


def test_the_page_needs_nothing_else_and_links_only_into_itself(made: tuple[Path, Path]) -> None:
    source = (made[1] / "index.html").read_text(encoding="utf-8")
    page = Page(source)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("href") or "#results")[1:] in ids
        assert (attrs.get("src") or "data:").startswith("data:")
    assert not re.findall(r"https?://|url\(|@import", source)
    assert str(made[0]) not in source


def test_the_same_suite_gives_the_same_bytes(made: tuple[Path, Path], tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a")
    shutil.copytree(runs_of(made[0]) / "piggyback" / "0" / "outputs", tmp_path / "runs" / "a" / "0" / "outputs")
    finish(suite, tmp_path / "runs")
    files = []
    for out in (tmp_path / "first", tmp_path / "second"):
        write_comparison(suite, out)
        files.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium")
def test_the_page_opens_in_a_browser_without_an_error_or_a_request(made: tuple[Path, Path], tmp_path: Path) -> None:
    said, dom = in_browser(made[1] / "index.html", tmp_path)
    assert "CONSOLE" not in said
    assert "Fine-tuned networks" in dom
    # The switches do catch what they are to catch.
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><title>x</title><img src='missing.png'><script>nonsense()</script>", encoding="utf-8")
    said, _ = in_browser(broken, tmp_path)
    assert "CONSOLE" in said


def in_browser(page: Path, folder: Path) -> tuple[str, str]:
    """What headless Chromium says of a page on stderr, and the page's elements as it sees them."""
    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}")  # fmt: skip
    # No host can be reached: a page that asks for one gets an error, which is logged.
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = ["chromium", "--headless", "--no-sandbox", *quiet, offline, "--dump-dom", page.as_uri()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            dom, said = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said
    return said, dom


# ------------------------------------------------------------------ what is missing, odd or damaged


def test_what_a_suite_lacks_is_left_out(tmp_path: Path) -> None:
    short = results("piggyback", 0)
    short["tasks"][1] |= {"bytes": None, "train_seconds": None}
    for key in ("transfer", "environment", "experiment"):
        del short[key]
    add_run(tmp_path / "suite", "piggyback", short)
    write_comparison(tmp_path / "suite", tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {"skill", "forgetting_piggyback"}
    assert not list((tmp_path / "out" / "tables").glob("pairs.*")), "nothing to compare with"
    headings = [attrs.get("id") for tag, attrs in page.tags if tag == "h2"]
    assert headings == ["results", "skill", "forgetting", "metrics", "setup"]
    assert page.row("piggyback")[1:] == ["0.5000", "100.0◆", "1,000◆", "0.5417", "—", "1"]
    assert "±" not in page.text.replace("mean ± standard", "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["commit"] is None
    assert summary["methods"]["piggyback"]["colour"] == {"mean": 100.0, "std": None, "seeds": 1, "bytes": None}


def test_a_method_without_a_task_has_no_figure_there_and_tasks_keep_the_longest_order(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "a", "b")
    short = results("piggyback", 0)
    short["tasks"] = [short["tasks"][2], short["tasks"][0]]
    short["forgetting"]["value_matrix"] = [[900.0, None], [900.0, 0.9]]
    add_run(suite, "b", short)
    write_comparison(suite, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert [task.name for task in read_suite(suite).tasks] == ["streets", "colour", "edges"]
    assert page.row("b")[1:5] == ["0.9000◆", "—", "900.0◆", "0.8250*"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["methods"]["b"].keys() == {"streets", "edges"}


def test_labels_and_titles_are_escaped_and_name_no_odd_file(tmp_path: Path) -> None:
    suite = bare_suite(tmp_path / "suite", "<b>&'x $_$", "_z")
    z = MethodInfo(title="<i>..&</i>", group="mask", note="<u>")
    describe_store(suite, About(suite="suite", title="<script>alert(1)</script>", methods={"_z": z}))
    write_comparison(suite, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert not {"b", "script", "i", "u"} & {tag for tag, _ in page.tags}
    for part in ("<b>&'x $_$", "<script>alert(1)</script>", "<i>..&</i>", "<u>"):
        assert part in page.text
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.png", name) for name in names)
    assert len([name for name in names if name.startswith("forgetting_")]) == 2


@pytest.mark.parametrize(
    ("number", "old", "new", "found"),
    [
        (1, '"version":1', '"version":2', ("line 1", "version 2", "version 1")),
        (1, '"version":1,', "", ("line 1", "version None", "version 1")),
        (1, '"title":', '"titel":', ("line 1", "title")),
        (1, '"group":"mask"', '"group":"odd"', ("line 1", "methods.piggyback.group", "'odd'", "'mask'")),
        (2, "{", "", ("line 2", "not valid JSON")),
        (3, '"seed":1', '"seed":"1"', ("line 3", "seed", "'1'")),
        (3, '"seed":1', '"seed":1,"odd":2', ("line 3", "odd")),
        (3, '"seed":1', '"seed":0', ("line 3", "line 2", "finetune, seed 0")),
        (4, '"value":0.5,', "", ("line 4", "tasks[0] lacks value")),
        (4, '"value":0.5,', '"value":NaN,', ("line 4",)),
        (4, '"transfer":', '"shared_bytes":-1,"transfer":', ("line 4", "shared_bytes", "-1")),
        (4, '"value_matrix":[[', '"value_matrix":[[0.1,', ("line 4", "3 rows of 3")),
        (4, '"densities":[0.9,', '"densities":[', ("line 4", "colour", "expected 4 values", "got 3")),
    ],
)
def test_a_damaged_line_is_named(
    made: tuple[Path, Path], tmp_path: Path, number: int, old: str, new: str, found: tuple[str, ...]
) -> None:
    lines = (made[0] / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        write_comparison(tmp_path, tmp_path / "out")
    for part in ("runs.jsonl", *found):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_damaged_image_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    suite = Path(shutil.copytree(made[0], tmp_path / "suite"))
    path = suite / "images" / "colour.webp"
    with Image.open(path) as image:
        image.save(path, "WEBP")
    with pytest.raises(InputError, match=r"colour\.webp, its description"):
        write_comparison(suite, tmp_path / "out")
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"colour\.webp cannot be read as WebP"):
        write_comparison(suite, tmp_path / "out")
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda r: r["tasks"][1].update(baseline=210.0), "the baseline of colour is 210.0, but 200.0"),
        (lambda r: r["tasks"][1].update(primary_metric="SSIM"), "primary_metric of colour is 'SSIM', but 'ab error'"),
        (lambda r: r["tasks"][1].update(higher_is_better=True), "higher_is_better of colour is True, but False"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(tmp_path: Path, spoil: Callable[[Any], None], found: str) -> None:
    suite = bare_suite(tmp_path / "suite", "a")
    changed = results("piggyback", 0)
    spoil(changed)
    add_run(suite, "b", changed)
    with pytest.raises(InputError, match=found) as error:
        read_suite(suite)
    assert "runs.jsonl, line 3" in str(error.value)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_comparison(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"has no runs\.jsonl"):
        write_comparison(tmp_path, tmp_path / "out")
