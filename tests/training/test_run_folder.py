"""A run folder that another process uses, that kills have littered, or whose files are damaged."""

import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from killing import Killed, killed_at, refuse_steps

from img2img import InputError
from img2img.api import run
from img2img.errors import first_line
from img2img.files.atomic import temporary_beside
from img2img.files.lock import FolderInUseError, hold
from img2img.reports.read import read_curve
from img2img.training import run_folder, sequence
from img2img.training.checked_files import read_checked_json, write_checked_json
from img2img.training.checkpoint import load_checkpoint, save_checkpoint
from img2img.training.config import read_experiment
from img2img.training.environment import commit_of, environment
from img2img.training.progress import read_progress
from img2img.training.sequence import SequenceRunner
from img2img.training.strategy_files import read_learned, write_learned

pytestmark = pytest.mark.usefixtures("without_curves")

Make = Callable[..., dict[str, Any]]
FORK = multiprocessing.get_context("fork")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file with its content, but for a lock."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".img2img.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def train(config: dict[str, Any]) -> None:
    """A run's training, without its report."""
    SequenceRunner(read_experiment(config)).run()


def flipped(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The content with one bit flipped, `count` times anew, everywhere in it."""
    numbers = random.Random(seed)
    for _ in range(count):
        place = numbers.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


# ---------------------------------------------------------------------- two processes


def _hold(folder: Path, held: Any) -> None:
    with hold(folder):
        held.set()
        time.sleep(60)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("begun", [False, True], ids=["new folder", "unfinished run"])
def test_a_second_run_in_a_folder_hears_who_works_there_and_touches_nothing(config: Make, tmp_path: Path, begun: bool) -> None:
    if begun:
        with killed_at(12):
            train(config(sequence=["disks", "colour"]))
    held = FORK.Event()
    first = FORK.Process(target=_hold, args=(tmp_path / "run", held))
    first.start()
    try:
        assert held.wait(20)
        before = tree(tmp_path)
        with pytest.raises(FolderInUseError, match=rf"by process {first.pid} .*wait .* or choose"):
            run(config(sequence=["disks", "colour"]))
        assert tree(tmp_path) == before
    finally:
        first.kill()
        first.join()
    assert len(run(config(sequence=["disks"]))["tasks"]) == 1, "the other was killed: its lock is no obstacle"
    assert not (tmp_path / "run" / ".img2img.lock").exists()


def test_a_run_holds_its_folder_from_the_first_check_to_the_report(config: Make, tmp_path: Path, monkeypatch: Any) -> None:
    found = []

    def look(*args: Any) -> None:
        with pytest.raises(FolderInUseError, match="this very process"):
            run(config(sequence=["disks"]))
        found.append(1)

    prepare = SequenceRunner.prepare
    monkeypatch.setattr(SequenceRunner, "prepare", lambda self: (look() if not found else None, prepare(self)))
    monkeypatch.setattr("img2img.api.write_report", look)
    run(config(sequence=["disks"]))
    assert len(found) == 2
    with pytest.raises(InputError, match="under another configuration"):
        run(config(sequence=["disks"], seed=1, out=str(tmp_path / "run")))
    with pytest.raises(InputError):
        run(config(sequence=["nothing"], out=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_what_another_run_finished_in_the_meantime_is_seen(config: Make, tmp_path: Path, monkeypatch: Any) -> None:
    """The first run ends between the second's first look at its progress and its turn."""
    original = run_folder.hold

    def late(folder: Path) -> Any:
        monkeypatch.setattr(run_folder, "hold", original)
        train(config(sequence=["disks"]))
        refuse_steps(monkeypatch)
        return original(folder)

    monkeypatch.setattr(run_folder, "hold", late)
    assert len(run(config(sequence=["disks"]))["tasks"]) == 1


# ---------------------------------------------------------------------- what kills leave


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["piggyback", "sequential"])
def test_what_a_kill_after_the_bookkeeping_leaves_is_cleared_at_the_next_start(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"sequence": ["disks", "colour"], "method": {"name": method}}
    folder = tmp_path / "run"

    def killed(*args: Any) -> None:
        raise Killed

    monkeypatch.setattr(sequence, "remove_older", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            train(config(**options))
    monkeypatch.undo()
    assert len(json.loads((folder / "progress.json").read_text())["tasks"]) == 2
    assert (folder / "checkpoints" / "colour.pt").is_file()
    if method == "sequential":
        assert (folder / "strategy" / "shared after 1.safetensors").is_file()
    process = FORK.Process(target=int)
    process.start()
    process.join()
    own = folder / "bundle" / "tasks" / temporary_beside(Path("x.safetensors")).name.replace(f"-{_me()}-", f"-{process.pid}-")
    own.parent.mkdir(exist_ok=True)
    users = [folder / "checkpoints" / "later.pt", folder / "note.tmp", folder / ".mine.tmp"]
    for path in (own, *users):
        path.touch()
    run(config(**options))
    assert not own.exists()
    assert all(path.exists() for path in users)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["later.pt"]
    if method == "sequential":
        assert sorted(p.name for p in (folder / "strategy").iterdir())[-1] == "shared after 2.safetensors"
        assert len(list((folder / "strategy").glob("shared*"))) == 1


def _me() -> int:
    return multiprocessing.current_process().pid or 0


@pytest.mark.slow
def test_the_checkpoint_of_a_comparison_that_is_not_finished_stays(config: Make, tmp_path: Path) -> None:
    options = {"compare": {"decoder_only": ["colour"]}, "sequence": ["disks", "colour"]}
    with killed_at(22):
        run(config(**options))
    path = tmp_path / "run" / "checkpoints" / "colour.decoder_only.pt"
    assert path.is_file()
    experiment = read_experiment(config(**options))
    progress = read_progress(experiment)
    run_folder.clear(tmp_path / "run", progress, experiment)
    assert path.is_file()
    run_folder.clear(tmp_path / "run", progress, read_experiment(config(sequence=["disks", "colour"])))
    assert not path.exists()


# ---------------------------------------------------------------------- damage


def test_no_flipped_bit_of_a_checkpoint_is_read_as_another_value(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    values = {"fingerprint": "x", "module": {"w": torch.randn(20, 20)}, "step": 4, "rows": [{"loss": 0.5}], "none": None}
    save_checkpoint(path, values)
    read = load_checkpoint(path, fingerprint="x")
    assert read.keys() == values.keys()
    assert torch.equal(read["module"]["w"], values["module"]["w"])
    content = path.read_bytes()
    for changed in flipped(content, 400):
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"a\.pt cannot be read .*: delete it"):
            load_checkpoint(path, fingerprint="x")
    for size in (0, 1, 40, 41, 1000, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="delete it, and the task starts again"):
            load_checkpoint(path, fingerprint="x")
    torch.save(values, path)  # as versions before wrote it
    with pytest.raises(InputError, match=r"without a checksum.*: delete it"):
        load_checkpoint(path, fingerprint="x")


def test_a_disk_that_fills_at_any_write_of_a_checkpoint_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's zip writer turned most of these into a RuntimeError of its own."""
    path, values = tmp_path / "a.pt", {"fingerprint": "x", "module": {"w": torch.zeros(50, 50), "v": torch.zeros(9)}}
    room, written = 1000, 0

    def full(self: Any, data: Any) -> int:
        nonlocal written
        written += 1
        if written > room:
            raise OSError(28, "No space left on device")
        self.digest.update(data)
        return int(self.file.write(data))

    monkeypatch.setattr("img2img.training.checkpoint._Hashing.write", full)
    save_checkpoint(path, values | {"step": 1})
    assert written > 10
    for writes in range(written):
        room, written = writes, 0
        with pytest.raises(OSError, match=r"earlier file is unchanged\. Free"):
            save_checkpoint(path, values | {"step": 2})
        assert load_checkpoint(path, fingerprint="x")["step"] == 1
    room, written = 1000, 0
    save_checkpoint(path, values | {"step": 2})
    assert load_checkpoint(path, fingerprint="x")["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_flipped_bit_of_what_tasks_learned_is_noticed_and_what_earlier_versions_wrote_is_read(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(5, 5), "b": torch.tensor([1, 2])}
    write_learned(tmp_path, ["disks"], {"v": torch.ones(3)}, tensors)
    own, shared = read_learned(tmp_path, ["disks"])
    assert torch.equal(own["disks"]["v"], torch.ones(3))
    assert torch.equal(shared["w"], tensors["w"])
    path = tmp_path / "strategy" / "shared after 1.safetensors"
    content, noticed = path.read_bytes(), 0
    for changed in flipped(content, 300):
        path.write_bytes(changed)
        try:
            _, shared = read_learned(tmp_path, ["disks"])
        except InputError:
            noticed += 1
        else:  # in the name of the checksum, or in the space behind the header
            assert all(torch.equal(shared[name], tensors[name]) for name in tensors)
    assert noticed > 200
    path.write_bytes(safetensors.torch.save(tensors))
    assert torch.equal(read_learned(tmp_path, ["disks"])[1]["w"], tensors["w"])
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"1\.safetensors is damaged .*restore"):
        read_learned(tmp_path, ["disks"])
    path.unlink()
    with pytest.raises(InputError, match=r"after 1\.safetensors is missing"):
        read_learned(tmp_path, ["disks"])


@pytest.mark.slow
def test_a_damaged_stored_output_is_found_before_training_and_the_remedy_works(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(config(sequence=["disks"]))
    path = tmp_path / "run" / "output_check" / "disks.safetensors"
    content = path.read_bytes()
    output = safetensors.torch.load(content)["output"]
    with pytest.MonkeyPatch.context() as patch:
        refuse_steps(patch)
        for wrong in (
            content[:-1] + bytes([content[-1] ^ 1]),
            b"",
            content[:50],
            safetensors.torch.save({"input": torch.ones(1)}),
        ):
            path.write_bytes(wrong)
            with pytest.raises(InputError, match=r"disks\.safetensors .*: .*delete it"):
                run(config(sequence=["disks", "colour"]))
        assert len(run(config(sequence=["disks"]))["tasks"]) == 1, "nothing is left to train, so nothing is compared"
    path.unlink()
    with caplog.at_level("WARNING", logger="img2img"):
        train(config(sequence=["disks", "colour"]))
    assert "disks: its stored output is missing" in caplog.text
    assert torch.equal(safetensors.torch.load_file(path)["output"], output), "masks forget nothing: it is what it was"
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["changes"] == [{}, {"disks": 0.0}]


def _damaged(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("method", "damage", "changes", "message"),
    [
        ("piggyback", "output_check/disks.safetensors", {}, "is damaged"),
        ("piggyback", "bundle/tasks/disks.safetensors", {}, "disks.safetensors"),
        ("sequential", "strategy/disks.safetensors", {}, "is damaged"),
        ("sequential", "strategy/shared after 2.safetensors", {}, "is damaged"),
        ("piggyback", None, {"backbone_from": "nowhere"}, "nowhere holds no run"),
    ],
    ids=["output", "task", "own state", "shared state", "backbone"],
)
def test_a_run_that_is_refused_leaves_the_folder_as_it_was(
    config: Make, tmp_path: Path, method: str, damage: str | None, changes: dict[str, Any], message: str
) -> None:
    """With all that a run writes at its start, and what only an accepted run may clear away."""
    options = {"method": {"name": method}, "sequence": ["disks", "colour"], "compare": {"decoder_only": ["colour"]}}
    with killed_at(4 if damage is None else 20):
        run(config(**options), bars=False)
    folder = tmp_path / "run"
    if damage is not None:
        _damaged(folder / damage)
        shutil.rmtree(folder / "data")
    before = tree(folder)
    assert "config/config.yaml" in before
    with pytest.raises(InputError, match=message):
        run(config(**options | changes | {"sequence": ["disks", "colour", "edges"], "compare": {}}), bars=False)
    assert tree(folder) == before


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


def _with(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[place[0]] = _with(value[place[0]], place[1:], new)
    return changed


@pytest.mark.slow
def test_every_field_of_the_progress_with_a_wrong_type_is_one_message(config: Make, tmp_path: Path) -> None:
    options = {"compare": {"decoder_only": ["colour"]}, "sequence": ["disks", "colour"]}
    train(config(**options))
    path = tmp_path / "run" / "progress.json"
    experiment = read_experiment(config(**options))
    good = read_progress(experiment).model_dump()
    whole = path.read_text()
    wrong_kinds = ("text", 3, 1e400, True, None, [], {}, [[1]], {"x": {}}, 10**30)
    messages = 0
    for place in _places(good):
        if place[:1] == ("environment",) and len(place) > 1:
            continue  # shown as it is
        for new in wrong_kinds:
            path.write_text(json.dumps(_with(good, place, new)))  # without a checksum, as versions before wrote it
            try:
                read_progress(experiment)
            except InputError:
                messages += 1
            else:
                old = good
                for key in place:
                    old = old[key]
                fits = isinstance(new, str) == isinstance(old, str) and isinstance(new, dict) == isinstance(old, dict)
                assert fits or old is None or new is None, f"{place}: {new!r} was taken for {old!r}"
    assert messages > 200
    for changed_text in (whole.replace('"steps": 8', '"steps": 9', 1), whole.replace('"value": ', '"value": 1', 1)):
        assert changed_text != whole
        path.write_text(changed_text)
        with pytest.raises(InputError, match=r"progress\.json .*checksum .*restore it"):
            run(config(**options))
    for text in ("", "{", "[" * 100_000, "NaN", whole[:-10], '{"tasks": ' + "9" * 10_000 + "}"):
        path.write_text(text)
        with pytest.raises(InputError):
            run(config(**options))


@pytest.mark.slow
def test_a_run_folder_of_an_earlier_version_goes_on(config: Make, tmp_path: Path) -> None:
    """Without any checksum: methods of both kinds, and the backbone of another run."""
    for method in ("piggyback", "sequential"):
        folder = tmp_path / method
        train(config(out=str(folder), sequence=["disks"], method={"name": method}))
        progress = json.loads((folder / "progress.json").read_text())
        del progress["checksum"]
        (folder / "progress.json").write_text(json.dumps(progress))
        for path in (*(folder / "output_check").iterdir(), *folder.glob("strategy/*")):
            path.write_bytes(safetensors.torch.save(safetensors.torch.load(path.read_bytes())))
        train(config(out=str(folder), sequence=["disks", "colour"], method={"name": method}))
        assert len(json.loads((folder / "progress.json").read_text())["tasks"]) == 2
    train(config(out=str(tmp_path / "more"), sequence=["disks", "edges"], backbone_from=str(tmp_path / "piggyback")))


def test_sealed_json_is_what_was_written_and_one_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": 0.1, "b": [1, None, "é"], "c": {"d": True}}
    write_checked_json(path, value)
    assert read_checked_json(path, remedy="") == value
    content, noticed = path.read_bytes(), 0
    for changed in flipped(content, 200):
        path.write_bytes(changed)
        try:
            read = read_checked_json(path, remedy="do this")
        except InputError:
            noticed += 1
        else:  # in the name of the checksum or in white space
            assert {key: read[key] for key in value} == value
    assert noticed > 120


@pytest.mark.parametrize(
    "rows", ["x,1", "1,x", "\x00,1", "1e5,2", "9" * 5000 + ",1", "1," + "9" * 200_000], ids=lambda rows: rows[:9]
)
def test_a_damaged_training_log_is_one_message(tmp_path: Path, rows: str) -> None:
    (tmp_path / "metrics").mkdir()
    for text in (f"step,loss\n{rows}\n", f"loss\n{rows}\n"):
        (tmp_path / "metrics" / "x.csv").write_text(text)
        with pytest.raises(InputError, match="delete it to leave") as caught:
            read_curve(tmp_path, "x", "mIoU")
        assert len(str(caught.value)) < 1000


# ---------------------------------------------------------------------- the commit


def _git(folder: Path, *arguments: str) -> str:
    options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(folder), *options, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_commit_is_that_of_the_packages_own_repository_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    installed = theirs / ".venv" / "lib" / "site-packages" / "img2img" / "training"
    installed.mkdir(parents=True)
    (installed / "environment.py").touch()
    (theirs / "own.py").touch()
    _git(theirs, "init")
    _git(theirs, "add", "own.py")
    _git(theirs, "commit", "-m", "their work")
    assert commit_of(installed / "environment.py") is None, "installed inside somebody's repository"
    _git(theirs, "add", "-f", ".")
    _git(theirs, "commit", "-m", "their copy of the package")
    head = _git(theirs, "rev-parse", "HEAD").strip()
    assert commit_of(installed / "environment.py") == head
    (theirs / "own.py").write_text("changed")
    assert commit_of(installed / "environment.py") == f"{head} (with uncommitted changes)"
    # Started by a hook of another repository.
    other = tmp_path / "other"
    other.mkdir()
    _git(other, "init")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert str(commit_of(installed / "environment.py")).startswith(head)
    outside = tmp_path / "outside.py"
    outside.touch()
    assert commit_of(outside) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(installed / "environment.py") is None, "no git"
    assert environment()["commit"] is None


def test_the_first_line_helper_is_used_wherever_a_librarys_message_is_quoted() -> None:
    """An empty message has no line 0."""
    root = Path(sys.modules["img2img"].__file__ or "").parent
    assert not [path for path in root.rglob("*.py") if ".splitlines()[0]" in path.read_text(encoding="utf-8")]
    assert first_line(ValueError()) == "ValueError"
