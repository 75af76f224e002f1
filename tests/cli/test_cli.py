"""The command line: what it prints, what it writes, and how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from img2img import __version__
from img2img.cli import main
from img2img.cli.output import one_message, print_facts, print_table
from img2img.cli.process import bound_spinning
from img2img.errors import InputError
from img2img.research.suites.store import store_run


def results() -> dict[str, Any]:
    """One task, learned by one run."""
    task = {
        "name": "streets", "kind": "segmentation", "primary_metric": "mIoU", "higher_is_better": True, "value": 0.5,
        "baseline": 0.1,
        "bytes": 10, "density": None, "train_seconds": 1.0, "test_images": 2,
    }  # fmt: skip
    return {
        "version": 2,
        "backbone": {"name": "unet", "parameters": 10, "sha256": "0" * 64, "bytes": 100},
        "method": "piggyback",
        "tasks": [task],
        "forgetting": {"value_matrix": [[0.5]], "max_abs_output_change": 0.0},
    }


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps(results()), encoding="utf-8")
    (run / "metrics").mkdir()
    (run / "metrics" / "streets.csv").write_text("step,loss,val mIoU\n1,2.0,0.3\n2,1.0,0.5\n", encoding="utf-8")
    store_run(run, tmp_path / "suite", label="piggyback", seed=0)
    return tmp_path / "suite"


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `img2img ...`."""
    monkeypatch.setattr(sys, "argv", ["img2img", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


Fixtures = tuple[pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fixtures:
    return monkeypatch, capsys


@pytest.mark.slow
def test_a_suite_becomes_a_page(suite: Path, tmp_path: Path, shell: Fixtures) -> None:
    out = tmp_path / "out"
    assert call(*shell, "report", str(suite), "--out", str(out)) == (0, f"{out / 'index.html'}\n", "")
    assert (out / "summary.json").is_file()
    assert (out / "tables" / "final.csv").is_file()
    assert "piggyback" in (out / "index.html").read_text(encoding="utf-8")
    assert call(*shell, "report", str(suite), "--out", str(out))[0] == 0
    (out / "index.html").write_text("<title>Home</title>")
    code, _, said = call(*shell, "report", str(suite), "--out", str(out))
    assert (code, "index.html of something else" in said) == (1, True)
    assert (out / "index.html").read_text() == "<title>Home</title>"


def test_json_names_page_and_summary(suite: Path, tmp_path: Path, shell: Fixtures) -> None:
    code, said, _ = call(*shell, "report", str(suite), "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    named = json.loads(said)
    assert named == {"page": str(tmp_path / "out" / "index.html"), "summary": str(tmp_path / "out" / "summary.json")}
    assert json.loads(Path(named["summary"]).read_text(encoding="utf-8"))["methods"]["piggyback"]["streets"]["mean"] == 0.5


@pytest.mark.parametrize("elsewhere", [False, True])
def test_one_run_becomes_its_own_page(suite: Path, tmp_path: Path, shell: Fixtures, elsewhere: bool) -> None:
    run = suite.with_name("run")
    out = tmp_path / "out" if elsewhere else run
    code, said, _ = call(*shell, "report", str(run), *(["--out", str(out)] if elsewhere else []))
    assert (code, said) == (0, f"{out / 'report.html'}\n")
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")  # the learning curve came along
    assert (run / "report.html").is_file() is not elsewhere
    if elsewhere:
        logs, notes = sorted((run / "metrics").iterdir()), out / "metrics" / "notes.csv"
        logs[0].unlink()
        notes.touch()
        assert call(*shell, "report", str(run), "--out", str(out))[0] == 0
        assert sorted(path.name for path in (out / "metrics").iterdir()) == sorted([notes.name, *(p.name for p in logs[1:])])
        (out / "results.json").write_text("{}")
        code, _, said = call(*shell, "report", str(run), "--out", str(out))
        assert code == 1
        assert "results.json that is not of a run" in said
        assert (out / "results.json").read_text() == "{}"


def test_a_page_goes_into_no_folder_that_holds_anything_else(suite: Path, tmp_path: Path, shell: Fixtures) -> None:
    """A file of a user's own may have the name of a task, and so may one in a bundle."""
    run, mine = suite.with_name("run"), tmp_path / "mine"
    (mine / "metrics").mkdir(parents=True)
    (mine / "metrics" / "streets.csv").write_text("my own")
    (mine / "report.html").write_text("<title>Home</title>")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    (tmp_path / "file").write_text("a file")
    for out, said in (
        (mine, "holds something else than a report: expected a new or empty folder"),
        (mine / "metrics", "holds something else than a report"),
        (tmp_path / "bundle", "lies within the bundle"),
        (tmp_path / "bundle" / "page", "lies within the bundle"),
        (tmp_path / "file", f"--out={tmp_path / 'file'}: {tmp_path / 'file'} is a file; expected a folder"),
        (tmp_path / "file" / "page", "is a file; expected a folder"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        code, _, err = call(*shell, "report", str(run), "--out", str(out))
        assert (code, said in err) == (1, True), err
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    (tmp_path / "empty").mkdir()
    out = tmp_path / "empty"
    assert call(*shell, "report", str(run), "--out", str(out))[0] == 0
    other = json.loads((run / "results.json").read_text())
    other["tasks"][0]["name"] = "clouds"
    (run / "results.json").write_text(json.dumps(other))
    (out / "metrics" / "clouds.csv").write_text("my own")
    code, _, err = call(*shell, "report", str(run), "--out", str(out))
    assert (code, "clouds.csv is of no task of the report" in err) == (1, True), err
    assert (out / "metrics" / "clouds.csv").read_text() == "my own"


def test_a_report_is_copied_atomically(suite: Path, tmp_path: Path, shell: Fixtures) -> None:
    run, out = suite.with_name("run"), tmp_path / "out"
    assert call(*shell, "report", str(run), "--out", str(out))[0] == 0
    log = out / "metrics" / "streets.csv"
    copy = shutil.copyfile

    def half(source: Path, target: Path) -> None:
        copy(source, target)
        os.truncate(target, 3)
        raise OSError("the disk is gone")

    shell[0].setattr(shutil, "copyfile", half)
    assert call(*shell, "report", str(run), "--out", str(out))[0] == 1
    assert log.read_bytes() == (run / "metrics" / "streets.csv").read_bytes()
    assert json.loads((out / "results.json").read_text()) == results()


@pytest.mark.parametrize("out", [[], ["--out", "x"]])
def test_a_run_that_was_not_finished_is_told_to_go_on(tmp_path: Path, shell: Fixtures, out: list[str]) -> None:
    shell[0].chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "progress.json").write_text("{}")
    code, _, err = call(*shell, "report", "run", *out)
    said = " ".join(re.sub(r"[^ -~]", " ", err).split())
    assert code == 2
    assert "run has neither the results.json of a finished run" in said
    assert "run the experiment to its end" in said
    assert "suite's page" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["report", "nowhere", "--out", "x"], "error: no folder at nowhere"),
     (["report", "nowhere"], "error: no folder at nowhere"),
     (["report", "starter"], "error: starter is a bundle, not a run: expected the folder of a run, with results.json"),
     (["report", "damaged", "--out", "x.html"], "error: --out x.html names a file: expected a folder"),
     (["evaluate", "starter"], "error: starter is a bundle, not a run: expected the folder of a run, with results.json"),
     (["report", "damaged", "--out", "x"], "error: damaged/results.json")],
)  # fmt: skip
def test_a_users_error_is_one_line_and_code_1(tmp_path: Path, shell: Fixtures, arguments: list[str], said: str) -> None:
    shell[0].chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{", encoding="utf-8")
    code, out, err = call(*shell, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import math\n\nmath.sqrt(-1)\n", r"boom\.py, line 3: ValueError: math domain error"),
        ("x = 1\nif x\n    pass\n", r"boom\.py, line 2: SyntaxError: expected ':'"),
        ("import boom_needs_this_too\n", r"boom\.py, line 1: ModuleNotFoundError: No module named 'boom_needs_this_too'"),
        ("import json\n\njson.loads('{')\n", r"boom\.py, line 3: JSONDecodeError: "),
        ("open('nowhere/at/all')\n", r"boom\.py, line 1: FileNotFoundError: "),
    ],
)
def test_a_module_of_ones_own_that_fails_is_one_line(tmp_path: Path, shell: Fixtures, code: str, said: str) -> None:
    shell[0].syspath_prepend(str(tmp_path))
    shell[0].delitem(sys.modules, "boom", raising=False)
    (tmp_path / "boom.py").write_text(code)
    status, _, err = call(*shell, "--import", str(tmp_path / "boom.py"), "info")
    assert status == 1
    assert re.fullmatch(rf"error: --import \S*boom\.py: .*{said}.*correct it\n", err), err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "colour", "a.png", "--out", "b", "--workers", "2"], "got --workers without --launcher ray"),
        (["run", "colour", "a.png", "--out", "b", "--address", "x:1", "--gpus", "1"], "got --address, --gpus without --launcher"),
        (["serve", "starter", "--replicas", "2"], "got --replicas without --launcher ray"),
        (["serve", "starter", "--min-replicas", "1"], "got --min-replicas without --launcher ray"),
        (["serve", "starter", "--address", "auto", "--gpus", "0.5"], "got --address, --gpus without --launcher ray"),
        (["serve", "starter", "--max-mb", "nan"], "--max-mb nan: expected a finite number above 0"),
        (["serve", "starter", "--max-memory-gb", "nan"], "--max-memory-gb nan: expected"),
        (["serve", "starter", "--max-megapixels", "inf"], "--max-megapixels inf: expected"),
        (["serve", "starter", "--max-weights-gb", "nan"], "--max-weights-gb nan: expected"),
        (["serve", "starter", "--max-weights-gb", "-1"], "--max-weights-gb -1: expected"),
        (["serve", "starter", "--max-seconds", "nan"], "--max-seconds nan: expected"),
        (["serve", "starter", "--batch-window-ms", "inf"], "--batch-window-ms inf: expected a finite number;"),
        (["serve", "starter", "--grace", "nan"], "--grace nan: expected"),
        (
            ["absorb", "a.pt", "--images", "b", "--method", "dense_signs", "--share", "0.1"],
            "--share 0.1 with --method dense_signs",
        ),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_options_that_would_be_left_unread_and_no_numbers_are_refused(
    tmp_path: Path, shell: Fixtures, arguments: list[str], said: str
) -> None:
    shell[0].chdir(tmp_path)
    shell[0].setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of a cluster's machine: no option of this command
    code, _, err = call(*shell, *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_clusters_address_in_the_environment_is_no_mistake(tmp_path: Path, shell: Fixtures) -> None:
    shell[0].setenv("RAY_ADDRESS", "10.0.0.1:6379")
    code, _, err = call(*shell, "run", "colour", "none.png", "--out", str(tmp_path / "out"), "--bundle", "nowhere")
    assert code == 1
    assert "no bundle in nowhere" in err


@pytest.mark.parametrize("arguments", [["report"], ["report", "a", "--odd"], ["odd"], ["report", "."]])
def test_wrong_use_is_code_2(tmp_path: Path, shell: Fixtures, arguments: list[str]) -> None:
    shell[0].chdir(tmp_path)
    code, out, err = call(*shell, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: img2img" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [[], ["out=runs/x"], ["--config-dir", "mine"], ["--multirun"]])
def test_a_training_of_no_experiment_is_wrong_use(tmp_path: Path, shell: Fixtures, arguments: list[str]) -> None:
    shell[0].chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").touch()
    code, out, err = call(*shell, "train", *arguments)
    assert (code, out) == (2, "")
    assert "expected experiment=NAME" in err
    assert "demo," in err
    assert ("own," in err) == ("mine" in arguments)
    assert not (tmp_path / "runs").exists()
    code, _, err = call(*shell, "train", *arguments, "demo")
    assert (code, "did you mean experiment=demo?" in err) == (1, True)


def test_help_teaches(shell: Fixtures) -> None:
    code, said, _ = call(*shell, "--help")
    assert code == 0
    assert "report" in said
    assert "methods side by side" in " ".join(said.split())
    _, said, _ = call(*shell, "report", "--help")
    for part in ("FOLDER", "--out", "--json", "Example: img2img report docs/results/image_to_image --out report"):
        assert part in " ".join(said.split())


def test_tables_are_whole_in_a_pipe_and_folded_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "edges_to_s" + "o" * 190
    print_table(("task", "[metric]"), [(name, "IoU [car] :smile:"), ("b", "x [bold]y[/bold]")])
    head, _, *rows = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert head.split() == ["task", "[metric]"]
    assert [re.split("  +", row) for row in rows] == [[name, "IoU [car] :smile:"], ["b", "x [bold]y[/bold]"]]
    for variable, value in (("FORCE_COLOR", "1"), ("TERM", "dumb")):  # a terminal of 80 columns
        monkeypatch.setenv(variable, value)
    print_table(("task", "metric"), [(name, "mIoU")])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert out.count("o") == name.count("o") + "mIoU".count("o")


def test_nothing_that_a_strangers_file_has_for_names_reaches_the_terminal_as_an_order(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[2Jb\x9b0m\nc\td\u2028e\ud800"
    harmless = "a�[2Jb�0m c d e�"
    print_table(("x", evil), [(evil, "y")])
    print_facts({evil: evil, "classes": [evil, "ü 中"], "none": None})
    with pytest.raises(SystemExit), one_message():
        raise InputError(evil)
    out, err = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert out.count(harmless) == 5
    assert f"classes  {harmless}, ü 中\n" in out
    assert "none  —\n" in out
    assert err == "error: a�[2Jb�0m c d e\\ud800\n", "messages spell halves of pairs out"


def test_version(shell: Fixtures) -> None:
    assert call(*shell, "--version") == (0, f"img2img {__version__}\n", "")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "img2img", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"img2img {__version__}\n")


# ---------------------------------------------------------------------- how commands that train allocate memory

# What a step does: blocks of some megabytes that are written, freed and made again.
PROGRAM = """
import resource
import numpy as np
from img2img.cli.process import keep_freed_memory

keep_freed_memory()

def use():
    blocks = [np.ones(2 ** 21) for _ in range(8)]

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc alone")
def test_freed_blocks_are_used_again_unless_the_user_has_set_malloc_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_pages() -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout)

    assert new_pages() < 1000
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert new_pages() > 20_000


def test_waiting_threads_spin_for_a_bounded_time_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, "active" if name == "OMP_WAIT_POLICY" else "7")
        before = dict(os.environ)
        bound_spinning()
        assert dict(os.environ) == before
        monkeypatch.delenv(name)
        bound_spinning()
        assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 300_000
