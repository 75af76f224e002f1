"""The command and the pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import run_command, run_script

from img2img import __version__
from img2img.cli import main
from img2img.cli.pipeline import job_errors
from img2img.cli.process import bound_spinning
from img2img.cli.train import PIPELINE_VARIABLE, run_pipeline
from img2img.errors import InputError
from img2img.research.suites.store import store_run
from img2img.training.compose import check_overrides
from img2img.training.evaluation import evaluate_run, read_run

pytestmark = pytest.mark.usefixtures("without_curves")


def _call(pipeline: str, *overrides: str) -> tuple[int, str]:
    """The exit code and what went to stderr."""
    done = run_script(pipeline, *overrides)
    return done.code, done.stderr.strip()


def test_a_data_folder_that_was_not_given_is_one_message(tmp_path: Path) -> None:
    said = "error: the config has no value for data_root: give it on the command line, such as data_root=DATA"
    assert _call("image_to_image", "experiment=poster", f"out={tmp_path / 'run'}") == (1, said)
    assert not (tmp_path / "run").exists()


TINY = [
    "backbone=vgg_cifar", "backbone.width=0.0625", "backbone.hidden=[]", "tasks.patterns.count=2", "train.epochs=0.5",
    "device.threads=1", "first_train.epochs=0.5", "tasks.patterns.data.count={train: 24, val: 8, test: 8}",
    "evaluation.panels=1", "evaluation.check_images=1",
    "+tasks.patterns.data.seed=${seed}",
]  # fmt: skip


def test_the_folder_keeps_the_config_of_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert _call("cifar100", *TINY, f"out={folder}")[0] == 0
    kept = {path.name: path.read_bytes() for path in (folder / "config").iterdir()}
    assert kept.keys() == {"config.yaml", "overrides.yaml"}
    assert b"seed: ${seed}" in kept["config.yaml"], "as it was composed, so that it shows where a value is from"
    assert yaml.safe_load(kept["overrides.yaml"]) == [*TINY, f"out={folder}"]
    assert read_run(folder).tasks[0].data.options["seed"] == 0
    for wrong, message in (("seed=1", "holds a run that learned 'patterns_1' under another configuration"), ("nrom=own", "nrom")):
        code, said = _call("cifar100", *TINY, f"out={folder}", wrong)
        assert code == 1
        assert message in said
        assert {path.name: path.read_bytes() for path in (folder / "config").iterdir()} == kept
    for task in evaluate_run(folder).values():
        assert task["metrics"] == pytest.approx(task["reported"])


@pytest.mark.parametrize(
    "wrong", ["train.optimiser.lr=0", "+train.rate=1", "tasks.patterns.data.kind=patern", "backbone.width=-1"]
)
def test_a_mistake_leaves_no_folder(tmp_path: Path, wrong: str) -> None:
    code, said = _call("cifar100", *TINY, f"out={tmp_path / 'run'}", wrong)
    assert code == 1
    assert said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pipeline", ["cifar100", "impresslearn"])
def test_a_file_in_the_place_of_the_folder_is_one_message(tmp_path: Path, pipeline: str) -> None:
    (tmp_path / "run").write_text("mine")
    file = tmp_path / "run"
    code, said = _call(pipeline, f"out={file}")
    assert code == 1
    assert said == f"error: out={file}: {file} is a file; expected a folder, or none there yet: choose another"


def test_ctrl_c_ends_a_training_with_the_exit_code_of_shells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, job_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["out=runs/lr=0.1", "name=[open", "name=a}"])
def test_a_change_that_cannot_be_read_says_how_to_quote_it(change: str) -> None:
    with pytest.raises(InputError, match="quotes") as refused:
        check_overrides(["experiment=demo", change])
    key, _, value = change.partition("=")
    quoted = f'{key}="{value}"'
    assert quoted in str(refused.value)
    check_overrides([quoted])


def test_other_arguments_of_hydra_are_left_to_it() -> None:
    check_overrides(
        ["--config-dir=a=b", "-m", "+tasks.x.method={name: affine}", "~tasks.y", "train.optimiser.lr=1e-3,1e-4", "out=runs/x"]
    )


def test_an_experiment_without_its_first_line_or_with_a_mark_before_it_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nname: mine\nsequence: [a]\ntasks: {a: {task: {kind: denoising}, data: {kind: patterns}}}\n"
    for content in (b"\xef\xbb\xbf" + text.encode(), text.partition("\n")[2].encode()):
        (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
        done = run_command("train", "--config-dir", tmp_path, "experiment=mine", f"out={tmp_path / 'out'}")
        assert done.code == 1
        assert "# @package _global_" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_further_process_of_a_training_gets_the_same_pipeline_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fabric starts it as `python sys.argv[0] ...`, unless the main module has a spec: what it runs is looked at here."""
    commands: list[list[str]] = []

    def look(*, config_name: str, **_: Any) -> Any:
        return lambda run: lambda: commands.append([config_name, run.__name__, *sys.argv, str(sys.modules["__main__"].__spec__)])

    monkeypatch.setattr("hydra.main", look)
    monkeypatch.setenv(PIPELINE_VARIABLE, "")
    arguments, spec = list(sys.argv), sys.modules["__main__"].__spec__
    run_pipeline("cifar100", ["experiment=e", "--cfg", "job", "device.devices=2"])
    (command,) = commands
    assert command[:2] == ["cifar100", "run_config"]
    assert command[3:] == ["--cfg", "job", "experiment=e", "device.devices=2", "None"]
    assert (sys.argv, sys.modules["__main__"].__spec__) == (arguments, spec)
    monkeypatch.undo()
    environment = os.environ | {PIPELINE_VARIABLE: "cifar100"}
    again = [sys.executable, command[2], "--cfg", "job", "experiment=cifar100_reduced", "device.devices=2"]
    done = subprocess.run(again, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "devices: 2" in done.stdout


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["report", "nowhere", "--out", "x"], "error: no folder at nowhere"),
     (["report", "nowhere"], "error: no folder at nowhere"),
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


@pytest.mark.parametrize("arguments", [["report"], ["report", "a", "--odd"], ["odd"], ["report", "."]])
def test_wrong_use_is_code_2(tmp_path: Path, shell: Fixtures, arguments: list[str]) -> None:
    shell[0].chdir(tmp_path)
    code, out, err = call(*shell, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: img2img" in err
    assert "Traceback" not in err


def test_help_teaches(shell: Fixtures) -> None:
    code, said, _ = call(*shell, "--help")
    assert code == 0
    assert "report" in said
    assert "methods side by side" in " ".join(said.split())
    _, said, _ = call(*shell, "report", "--help")
    for part in ("FOLDER", "--out", "--json", "Example: img2img report docs/results/image_to_image --out report"):
        assert part in " ".join(said.split())


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
