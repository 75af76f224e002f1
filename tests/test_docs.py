"""What README and the documentation show runs: Python, configs, commands; their links lead somewhere, and the site builds.

A page is read from its top, in a folder of its own that holds what the pages speak of (`photo.jpg`, `my/photos`, a run in
`runs/demo`). Python blocks run one after another in one namespace; one that is headed `# my_task.py` is that file, and a `text`
block after one is what it prints. Experiments are composed, accepted, and learned for two steps; commands are parsed. What cannot
be checked so is marked `<!-- not run: WHY -->` above it.
"""

import contextlib
import doctest
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from doc_pages import (
    DOCS,
    PAGES,
    ROOT,
    SHELLS,
    TINY,
    TINY_NETWORK,
    TINY_TRAIN,
    Block,
    anchors,
    blocks,
    check_command,
    check_config,
    commands,
    inline_commands,
    inline_configs,
    links,
    page_name,
)
from matplotlib.figure import Figure
from PIL import Image
from pydantic import BaseModel

from img2img import backbones, data
from img2img.api import run
from img2img.bundle.description import BundleDescription
from img2img.masks import build_method, task_header
from img2img.registry import import_modules
from img2img.tasks import base as tasks
from img2img.training import results
from img2img.training.config import ExperimentConfig, TrainOptions
from img2img.training.config.experiment import TaskTemplate
from img2img.training.config.launcher import LAUNCHERS
from img2img.training.run import FOLDERS
from img2img.validation import Options

# ---------------------------------------------------------------------- what the pages speak of


def _images(folder: Path, count: int, *, width: int = 40, height: int = 32, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.as_posix()))
    for i in range(count):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(folder / f"{i:02}{suffix}")


def _labels(folder: Path, count: int, classes: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        label = np.zeros((32, 40), np.uint8)
        for c in range(1, classes):
            label[4 + i :, 12 * c : 12 * c + 8] = c
        Image.fromarray(label).save(folder / f"{i:02}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every page gets a copy of: made once for all of pytest-xdist's processes."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pages"
    ready = place.with_suffix(".ready")
    try:
        place.mkdir()
    except FileExistsError:
        while not ready.exists():
            time.sleep(0.1)  # pytest-timeout ends it if the process that makes it has failed
        return place
    _make(place)
    ready.touch()
    return place


def _make(place: Path) -> None:
    _images(place / "my" / "photos", 10)
    _labels(place / "my" / "labels", 10)
    (place / "my" / "classes.txt").write_text("ground\nwall\nroof\n")
    _images(place / "my" / "pairs", 10, width=80)
    for part in ("train", "val", "test"):
        _images(place / "my" / part / "photos", 3)
        _labels(place / "my" / part / "labels", 3)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            _images(place / "my" / "animals" / part / name, 4)
    for name in ("cat", "dog"):
        _images(place / "my" / "drawings" / name, 8)
    shutil.copytree(place / "my" / "photos", place / "my" / "coco" / "images")
    box = {"iscrowd": 0, "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]], "area": 256}
    coco = {
        "images": [{"id": i, "file_name": f"{i:02}.png", "width": 40, "height": 32} for i in range(10)],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 1 + i % 2, **box} for i in range(10)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "table"}],
    }
    (place / "my" / "coco" / "instances.json").write_text(json.dumps(coco))
    drive = place / "DRIVE" / "training"
    _images(drive / "images", 10)
    _labels(drive / "1st_manual", 10, classes=2)
    for i in range(10):
        (drive / "images" / f"{i:02}.png").rename(drive / "images" / f"{i + 21}_training.png")
        label = drive / "1st_manual" / f"{i:02}.png"
        Image.fromarray(255 * np.asarray(Image.open(label))).save(label.with_name(f"{i + 21}_manual1.png"))
        label.unlink()
    voc = place / "my" / "VOC2012"
    _images(voc / "JPEGImages", 6, suffix=".jpg")
    _labels(voc / "SegmentationClass", 6)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, numbers in (("train", range(4)), ("val", range(4, 6))):
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{i:02}\n" for i in numbers))
    for name in ("photo.jpg", "my/painting.jpg"):
        shutil.copy(place / "my" / "VOC2012" / "JPEGImages" / "00.jpg", place / name)
    for name in ("photos", "day", "night"):
        _images(place / name, 10)
    with contextlib.chdir(place):
        run(_demo())


def _demo() -> dict[str, Any]:
    """A run with those of the demo's tasks that pages use."""
    photos = {"kind": "image_folder", "root": "my/photos"}
    labelled = {"kind": "image_label_folder", "images": "my/photos", "labels": "my/labels", "classes": "my/classes.txt"}
    tasks = {
        "shapes": ({"kind": "segmentation"}, labelled),
        "colour": ({"kind": "colourisation"}, photos),
    }
    return {
        "name": "demo",
        "out": "runs/demo",
        "backbone": TINY_NETWORK,
        "method": {"name": "piggyback"},
        "train": TINY_TRAIN,
        "tasks": {name: {"task": task, "data": data} for name, (task, data) in tasks.items()},
        "sequence": list(tasks),
        **TINY,
    }


# ---------------------------------------------------------------------- the tests


def _not_drawn(figure: Figure, file: Any, *, format: str = "png", **_: Any) -> None:
    """No page looks at the curves of its reports, and drawing them takes longer than two steps of training."""
    if format == "svg":
        file.write("<svg/>")
    else:
        Image.new("RGB", (1, 1)).save(file, format)


@pytest.fixture
def place(made: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> Path:
    """The working directory of a page. One that only has commands, which are parsed, changes nothing and needs no copy."""
    if any(block.language in ("python", "yaml") for block in blocks(page)):
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    else:
        for path in made.iterdir():
            if path.name != "runs":
                (tmp_path / path.name).symlink_to(path)
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "demo").symlink_to(made / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", _not_drawn)
    return tmp_path


def _python(block: Block, names: ModuleType) -> str:
    """Run a block; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.file is None:
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), vars(names))
        else:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
            import_modules([block.file])
            vars(names).update({k: v for k, v in vars(sys.modules[Path(block.file).stem]).items() if not k.startswith("__")})
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_runs_from_its_top(page: Path, place: Path) -> None:
    names = ModuleType(f"my_page_{page.stem}")
    sys.modules[names.__name__] = names
    printed, ran = "", ""
    for number, block in enumerate(blocks(page)):
        try:
            if block.exempt is not None:
                ran = ""
                continue
            if block.language == "python":
                printed = _python(block, names)
            elif block.language == "yaml":
                check_config(block, number)
            elif block.language == "json":
                json.loads(block.text)
            elif block.language == "text":
                if not (block.follows and ran == "python"):
                    continue  # what commands or files look like
                flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
                assert doctest.OutputChecker().check_output(block.text, printed, flags), f"it prints:\n{printed}"
            else:
                assert block.language in SHELLS, f"a block of {block.language!r} is not run: mark it <!-- not run: WHY -->"
                for command in commands(block.text):
                    check_command(command)
            ran = block.language
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error
    for where, command in inline_commands(page):  # last, since they may name files that the blocks made
        try:
            check_command(command, whole=False)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{where}: {command}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("method", ["sign_flips", "gains"])
def test_the_mask_methods_of_the_documentation_hold_the_contract_of_all(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> None:
    file = f"my_{method}.py"
    (block,) = [b for b in blocks(DOCS / "guides" / "your_mask_method.md") if b.file == file]
    (tmp_path / file).write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "masks"))  # first: what it restores must not have the user's folder
    import_modules([str(tmp_path / file)])
    contract, zoo = (importlib.import_module(name) for name in ("test_contract", "mask_zoo"))

    def check(contract: type, layers: str, **given: object) -> None:
        for name, test in inspect.getmembers(contract, inspect.isfunction):
            if name.startswith("test_"):
                backbone, x = zoo.LAYERS[layers]()
                net = zoo.network(backbone)
                for task in ("first", "second"):
                    net.add_task(task, build_method(method, {}))
                found = {"self": contract(), "net": net, "x": x, "backbone_and_input": (backbone, x), "method": method}
                found |= {"tmp_path": tmp_path, **given}
                test(**{key: found[key] for key in inspect.signature(test).parameters})

    for layers in ("transposed2d", "attention", "tied"):
        check(contract.TestContract, layers)
    for precision in contract.PRECISIONS:
        check(contract.TestContractInEveryFormat, "grouped", precision=precision, memory_format=torch.channels_last)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_kinds_and_options_in_a_pages_text_are_known(page: Path) -> None:
    for where, key, given in inline_configs(page):
        registry = {"task": tasks.TASKS, "data": data.DATA, "backbone": backbones.BACKBONES}[key]
        common = {"kind", "mode"}
        if key == "data":
            common = {"kind", "resize", "square", "middle", "limit", "parts", "fractions", "number"}
        options = inspect.signature(registry.find(given["kind"])).parameters
        assert given.keys() <= options.keys() | common, f"{where}: {key} {given['kind']} has no option of {given}"


def test_what_is_not_run_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    exempt = [block for page in PAGES for block in blocks(page) if block.exempt is not None]
    assert all(block.exempt for block in exempt), [block.where for block in exempt if not block.exempt]
    with capsys.disabled():
        print(f"\n{len(exempt)} blocks of the documentation are not run", *(f"  {b.where}: {b.exempt}" for b in exempt), sep="\n")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    for line, target in links(page):
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{page_name(page)}:{line}: there is no {target}"
        if anchor and not anchor.startswith("img2img."):  # those are made from docstrings: the site's build checks them
            assert anchor in anchors(file), f"{page_name(page)}:{line}: {file.name} has no heading for #{anchor}"


# ---------------------------------------------------------------------- the reference


def _keys(page: str, heading: str) -> list[str]:
    """The names in the first column of the first table below a heading."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    first = section[section.index("| --- ") :].partition("\n\n")[0]
    return re.findall(r"^\| `([\w.-]+)` \|", first, re.MULTILINE)


CONFIG = {"The experiment": ExperimentConfig, "A task": TaskTemplate, "Training": TrainOptions}


def _paths(kind: type[BaseModel], above: str = "") -> Iterator[str]:
    """The keys of a config's model, those of groups with the group before them; `train` has a table of its own."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options) and name != "train":
            yield from _paths(field.annotation, f"{above}{name}.")
        else:
            yield above + name


@pytest.mark.parametrize(("heading", "kind"), CONFIG.items())
def test_the_reference_has_every_key_of_the_config(heading: str, kind: Any) -> None:
    documented = _keys("config.md", heading)
    assert sorted(documented) == sorted(_paths(kind))


def test_the_reference_has_every_key_of_the_launchers() -> None:
    keys = {f"launcher.{name}" for options in LAUNCHERS.values() for name in options.model_fields}
    assert set(_keys("config.md", "The launcher")) == keys


def test_the_reference_has_every_command() -> None:
    from typer.main import get_command

    from img2img.cli import app

    command: Any = get_command(app)
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", (DOCS / "reference" / "cli.md").read_text(), re.MULTILINE)) == sorted(
        command.list_commands(command.context_class(command))
    )


def test_the_tests_and_configs_that_the_coverage_names_are_there() -> None:
    text = (DOCS / "coverage.md").read_text(encoding="utf-8")
    tests = set(re.findall(r"`(tests/[\w/]+\.py)", text))
    configs = set(re.findall(r"`((?:suite|experiment|protocol|backbone|data|study)/\w+)`", text))
    assert len(tests) > 30
    assert len(configs) > 20
    assert not [path for path in tests if not (ROOT / path).is_file()]
    assert not [name for name in configs if not (ROOT / "configs" / f"{name}.yaml").is_file()]


# ---------------------------------------------------------------------- the site


def _entries(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [entry for part in (nav.values() if isinstance(nav, dict) else nav) for entry in _entries(part)]


def test_every_page_is_in_the_navigation() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(_entries(site["nav"])) == sorted(p.relative_to(DOCS).as_posix() for p in PAGES if DOCS in p.parents)


class _Loaded(HTMLParser):
    """What a browser fetches by itself for a page, links that a reader follows left out."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "source", "iframe", "video", "audio", "embed"):
            self.urls += [given[key] or "" for key in ("src", "srcset") if key in given]
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(given.get("href") or "")
        if "style" in given:
            self.urls += re.findall(r"url\(([^)]*)\)", given["style"] or "")


def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    """Ten seconds, most of them for the page of the whole API. A warning, such as a link that leads nowhere, is an error."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("results"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "img2img").symlink_to(ROOT / "img2img")
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = tmp_path / "build" / "docs"
    pages = list(built.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.urls, page.name
        assert not [url for url in loaded.urls if re.match(r"(?i)(https?:)?//", url)], page.name
    for sheet in built.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.findall(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^)\"']*", text), sheet.name


# ---------------------------------------------------------------------- the checks themselves

BROKEN: dict[str, Callable[[], None]] = {
    "img2img has no command": lambda: check_command("img2img reports x"),
    "No such option": lambda: check_command("img2img report x --oot y"),
    "needs": lambda: check_command("img2img report --out y"),
    "no more arguments": lambda: check_command("img2img report x y"),
    "no target": lambda: check_command("make demos"),
    "no script": lambda: check_command("python pipelines/image_to_images.py"),
    "stepz": lambda: check_command("python pipelines/image_to_image.py train.stepz=3"),
    "experiment/demos": lambda: check_command("FOO=1 python pipelines/image_to_image.py experiment=demos"),
    "no folder nowhere": lambda: check_command("python pipelines/image_to_image.py experiment=demo --config-dir nowhere"),
    "knows no": lambda: check_command("cd there && python pipelines/image_to_image.py --confg-dir nowhere"),
    "WHAT": lambda: check_command("python pipelines/image_to_image.py out=WHAT"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_stale_command_would_be_found(message: str) -> None:
    with pytest.raises((Exception, SystemExit), match=message):
        BROKEN[message]()


# ---------------------------------------------------------------------- the page of file formats


def _keys_of_files(heading: str, column: str) -> set[str]:
    """The names in the first column of a table of docs/reference/files.md: that under `heading` which begins with `column`."""
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |^### |\Z)", page, re.M | re.S)
    (table,) = re.findall(rf"^\| {re.escape(column)} \|.*\n\| --- .*\n((?:\|.*\n)+)", section, re.M)
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize(
    ("heading", "column", "model", "more"),
    [
        ("`results.json`", "key", results.Results, set()),
        ("`backbone`", "key", results.BackboneResult, set()),
        ("`tasks`", "key", results.TaskResult, set()),
        ("`forgetting`", "key", results.ForgettingResult, set()),
        ("`transfer`", "key", results.TransferResult, set()),
        ("`progress.json`", "key", results.Progress, {"checksum"}),
        ("`progress.json`", "key of a task", results.TaskRecord, set()),
        ("`progress.json`", "key of a comparison", results.ComparisonRecord, set()),
        ("A bundle", "key of `bundle.json`", BundleDescription, set()),
    ],
)
def test_the_page_of_files_has_the_keys_of_the_code_and_no_others(
    heading: str, column: str, model: type[BaseModel], more: set[str]
) -> None:
    assert _keys_of_files(heading, column) == set(model.model_fields) | more


def test_the_page_of_files_has_the_fields_of_a_tasks_header() -> None:
    assert _keys_of_files("A task's file", "header field") == set(task_header._Header.model_fields)


def test_the_page_of_files_names_every_folder_that_a_run_writes_to() -> None:
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    named = {path for row in re.findall(r"^\| (`.*?) \|", page, re.M) for path in re.findall(r"`([\w/.]+)`", row)}
    for folder in FOLDERS:
        assert any(path.startswith(f"{folder.partition('/')[0]}/") for path in named), folder


def test_every_image_of_the_documentation_is_shown_on_a_page() -> None:
    shown = {Path(link).name for page in PAGES for _, link in links(page) if "images/" in link}
    assert {path.name for path in (DOCS / "images").iterdir()} == shown
