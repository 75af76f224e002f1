"""The scripts that users call: what a mistake on their command lines says, and what they leave in a folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import run_command, run_script

from img2img.cli.pipeline import job_errors
from img2img.cli.train import PIPELINE_VARIABLE, run_pipeline
from img2img.errors import InputError
from img2img.training.evaluation import evaluate_run, read_run
from img2img.training.overrides import check_overrides

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


@pytest.mark.parametrize(
    ("word", "said"),
    [("demo", "did you mean experiment=demo\\? expected KEY=VALUE"), ("colour_task_x", "^got 'colour_task_x': expected")],
)
def test_a_stray_word_is_no_override(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_overrides(["--config-name", "base", word, "out=runs/x"])


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
