"""A run folder that came from somebody else: nothing in it is run, and what cannot be read is one message."""

import sys
from pathlib import Path

import pytest

from img2img.errors import InputError
from img2img.files.yaml import read_yaml
from img2img.registry import import_modules
from img2img.training.evaluation import read_run

CONFIG = """\
name: theirs
out: runs/theirs
imports: [{module}]
backbone: {{kind: image_transformer, width: 4, blocks: 1}}
method: {{name: piggyback}}
train: {{steps: 2}}
sequence: [colour]
tasks: {{colour: {{task: {{kind: colourisation}}, data: {{kind: samples}}}}}}
"""


def _run(folder: Path, text: str) -> Path:
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("as_file", [False, True])
def test_modules_that_a_run_names_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_file: bool) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"planted_{as_file}"
    (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    run = _run(tmp_path / "run", CONFIG.format(module=f"{name}.py" if as_file else name))
    assert read_run(run).imports == ()
    assert not (tmp_path / "ran").exists()
    assert name not in sys.modules
    import_modules([f"{name}.py"])  # by one's own word it is
    assert (tmp_path / "ran").exists()


def test_a_kind_that_only_a_strangers_module_defines_is_said_with_the_way_on(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", CONFIG.format(module="theirs").replace("name: piggyback", "name: their_own"))
    with pytest.raises(InputError, match="--import MODULE"):
        read_run(run)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "name: [unclosed",
        "name: ${missing.key}",
        "name: ${oc.env:IMG2IMG_NO_SUCH_VARIABLE}",
        "name: ${unknown_resolver:1}",
        "name: ???",
        "name: !!python/object/apply:os.getcwd []",
        "- a list",
        "",
        "[" * 4000,
        "a: &a [*a]",
        BOMB,
        "name: \udcff",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_a_config_that_cannot_be_read_is_one_message(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    _run(folder, "")
    path = folder / "config" / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"config\.yaml") as refused:
        read_run(folder)
    assert len(str(refused.value)) < 1000


def test_interpolations_are_resolved_or_left(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\ufeffseed: 3\nagain: {seed: '${seed}'}\n")
    assert read_yaml(path, "a config") == {"seed": 3, "again": {"seed": 3}}
    assert read_yaml(path, "a config", resolve=False) == {"seed": 3, "again": {"seed": "${seed}"}}
    with pytest.raises(InputError, match="no file"):
        read_yaml(tmp_path / "y.yaml", "a config")
