"""Experiments as jobs: what each needs, and that the joined run is the one that one process would have made."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killing import killed_at
from scripts import run_command

import img2img
from img2img import InputError
from img2img.files import lock
from img2img.files.lock import FolderInUseError, hold
from img2img.launch.execute import execute
from img2img.launch.jobs import Ended, Job, jobs_of
from img2img.launch.scheduler import check_finished, run_jobs
from img2img.launch.store import Store, _Mirror
from img2img.research.suites.runner import SuiteConfig, backbone_jobs, describe, launch_jobs, method_jobs
from img2img.research.suites.store import read_store
from img2img.training.config.launcher import RayOptions, SlurmOptions, read_launcher
from img2img.validation import checked

pytestmark = pytest.mark.usefixtures("without_curves")

Config = dict[str, Any]
OPTIONS = RayOptions(retries=1)


class InProcess:
    """A launcher that does each job in this process, as soon as it is submitted.

    Args:
        kill: at which step of its optimisers the first attempt of a job is killed, by its name.
    """

    def __init__(self, kill: dict[str, int] | None = None) -> None:
        self.kill = kill or {}
        self.started: list[tuple[str, int]] = []
        self._ended: list[Ended] = []

    def submit(self, job: Job, attempt: int) -> None:
        self.started.append((job.name, attempt))
        step = self.kill.get(job.name)
        if step is not None and attempt == 0:
            with killed_at(step):
                execute(job, sole=False)
            self._ended.append(Ended(job.name, "killed", lost=True))
        else:
            self._ended.append(Ended(job.name, execute(job, sole=attempt > 0)))

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


def launched(config: Config, launcher: InProcess | None = None) -> InProcess:
    """The experiment done by jobs in this process; with the names of the jobs that were started."""
    launcher = launcher or InProcess()
    jobs = jobs_of(config)
    check_finished(run_jobs(jobs, OPTIONS, launcher=launcher), jobs)
    return launcher


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def results(folder: Path) -> Any:
    """`results.json` without seconds, and without the commit, which may change meanwhile."""
    found = json.loads((folder / "results.json").read_text())
    del found["environment"]
    for task in found["tasks"]:
        del task["train_seconds"]
    return found


@pytest.fixture
def whole(config_in: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """`whole(folder, **changes)`: five tasks, of which one starts from another and one combines two."""

    def make(folder: str, **changes: Any) -> Config:
        config = config_in(tmp_path / folder)
        edges = config["tasks"]["edges"]
        config["tasks"] |= {
            "soft": {**edges, "start_from": "edges"},
            "impressed": {**edges, "method": {"name": "impresslearn", "basis": "two"}},
        }
        config |= {
            "sequence": ["disks", "colour", "edges", "soft", "impressed"],
            "masks": {"bases": {"two": {"tasks": ["colour", "soft"]}}},
            "compare": {"decoder_only": ["colour"]},
            "device": {"accelerator": "cpu", "threads": 1},
            "evaluation": {"check_images": 2, "panels": 1},
        }
        return config | changes

    return make


def test_each_task_is_a_job_that_waits_for_what_it_needs(whole: Callable[..., Config]) -> None:
    jobs = {job.name: job for job in jobs_of(whole("run"), name="a", needs=["backbone"])}
    assert {name: set(job.needs) - {"backbone"} for name, job in jobs.items()} == {
        "a: disks": set(),
        "a: colour": {"a: disks"},
        "a: edges": {"a: disks"},
        "a: soft": {"a: disks", "a: edges"},
        "a: impressed": {"a: disks", "a: colour", "a: edges", "a: soft"},
        "a": {"a: disks", "a: colour", "a: edges", "a: soft", "a: impressed"},
    }
    assert [job.config["sequence"] for job in jobs.values()][3] == ["disks", "edges", "soft"]
    nearest = whole("run", sequence=["disks", "colour", "edges"])
    nearest["tasks"]["edges"]["start_from"] = "nearest"
    assert jobs_of(nearest)[2].needs == ("disks", "colour"), "it chooses among all before it"


@pytest.mark.parametrize(
    "changes",
    [{"method": {"name": "finetune"}}, {"evaluation": {"remeasure": "every"}}, {"sequence": ["disks"]}],
    ids=["comparison method", "measured after every task", "one task"],
)
def test_what_cannot_be_split_is_one_job(config: Callable[..., Config], changes: Config) -> None:
    assert [job.kind for job in jobs_of(config(**changes))] == ["run"]


def test_the_joined_run_is_that_of_one_process_and_a_lost_job_goes_on_from_its_checkpoint(
    whole: Callable[..., Config], tmp_path: Path
) -> None:
    img2img.run(whole("alone"), bars=False)
    launcher = launched(whole("apart"), InProcess({"soft": 6}))
    assert launcher.started == [
        ("disks", 0), ("colour", 0), ("edges", 0), ("soft", 0), ("soft", 1), ("impressed", 0), ("join", 0),
    ]  # fmt: skip
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    assert files(apart / "bundle") == files(alone / "bundle")
    assert results(apart) == results(alone)
    kept = [{name for name in files(folder) if "tfevents" not in name} for folder in (alone, apart)]
    assert kept[0] == kept[1]
    # A longer sequence adds a job for what is new, whoever learned the others.
    longer = whole("alone")
    longer["tasks"]["more"] = longer["tasks"]["soft"]
    longer["sequence"] = [*longer["sequence"], "more"]
    (alone / "output_check" / "disks.safetensors").unlink()  # it is stored anew, as a run without a launcher does
    assert launched(longer).started == [("more", 0), ("join", 0)]
    assert (alone / "output_check" / "disks.safetensors").is_file()
    assert results(alone)["forgetting"]["max_abs_output_change"] is None, "one was compared with nothing"
    assert json.loads((alone / "bundle" / "bundle.json").read_text())["tasks"] == longer["sequence"]
    assert launched(longer).started == [("join", 0)]
    assert results(alone)["forgetting"]["max_abs_output_change"] == 0


def test_tasks_on_a_backbone_that_none_of_them_trains_need_nothing_of_each_other(
    whole: Callable[..., Config], tmp_path: Path
) -> None:
    """Their heads differ, so that each alone would describe the backbone by another number of outputs."""
    random = {"mode": "random", "kind": "image_transformer", "width": 4, "blocks": 1, "head_kernel": 3}
    changes = {"backbone": random, "sequence": ["colour", "edges"], "compare": {}}
    assert [job.needs for job in jobs_of(whole("apart", **changes))] == [(), (), ("colour", "edges")]
    img2img.run(whole("alone", **changes), bars=False)
    launched(whole("apart", **changes))
    assert files(tmp_path / "apart" / "bundle") == files(tmp_path / "alone" / "bundle")
    assert results(tmp_path / "apart") == results(tmp_path / "alone")


def test_a_task_that_fails_leaves_the_others_and_the_same_command_learns_what_is_missing(
    whole: Callable[..., Config], tmp_path: Path
) -> None:
    names = ["disks", "colour", "edges", "soft"]
    right, wrong = whole("run", sequence=names), whole("run", sequence=names)
    wrong["tasks"]["edges"] = {**wrong["tasks"]["edges"], "data": {"kind": "image_folder", "root": str(tmp_path / "nowhere")}}
    launcher, jobs = InProcess(), jobs_of(wrong)
    errors = run_jobs(jobs, OPTIONS, launcher=launcher)
    assert list(errors) == ["edges", "soft", "join"]
    assert "nowhere" in errors["edges"]
    assert [name for name, _ in launcher.started] == ["disks", "colour", "edges"]
    with pytest.raises(InputError, match=r"1 of 5 jobs failed \(edges: .*nowhere.*the same command"):
        check_finished(errors, jobs)
    assert [name for name, _ in launched(right).started] == ["edges", "soft", "join"]
    assert list(img2img.load(str(tmp_path / "run")).tasks) == names


def test_without_its_join_a_run_does_not_say_that_nothing_changed(
    whole: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(experiment: Any) -> None:
        raise RuntimeError("lost")

    two = whole("run", sequence=["disks", "colour"])
    with monkeypatch.context() as patch:
        patch.setattr("img2img.launch.execute.measure_again", lost)
        assert list(run_jobs(jobs_of(two), OPTIONS, launcher=InProcess())) == ["join"]
    img2img.run(two, bars=False)
    assert results(tmp_path / "run")["forgetting"]["max_abs_output_change"] is None
    launched(two)
    assert results(tmp_path / "run")["forgetting"]["max_abs_output_change"] == 0


def test_a_job_that_is_lost_again_and_again_fails(whole: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(InProcess):
        def submit(self, job: Job, attempt: int) -> None:
            self.started.append((job.name, attempt))
            self._ended.append(Ended(job.name, "the node died", lost=True))

    launcher = Losing()
    jobs = jobs_of(whole("run"))
    with pytest.raises(InputError, match=r"lost 2 times.*the node died.*launcher\.memory"):
        check_finished(run_jobs(jobs, OPTIONS, launcher=launcher), jobs)
    assert launcher.started == [("disks", 0), ("disks", 1)]


def test_one_launch_at_a_time_and_only_so_many_jobs(whole: Callable[..., Config], tmp_path: Path) -> None:
    jobs = jobs_of(whole("run"))
    with hold(tmp_path / "run" / "jobs"), pytest.raises(FolderInUseError):
        run_jobs(jobs, OPTIONS, launcher=InProcess())
    with hold(tmp_path / "run"), pytest.raises(FolderInUseError):
        run_jobs(jobs, OPTIONS, launcher=InProcess())
    running: list[int] = []

    class Counting(InProcess):
        def submit(self, job: Job, attempt: int) -> None:
            running.append(len(self._ended) + 1)
            self._ended.append(Ended(job.name, "is not done here"))

    independent = [replace(job, needs=()) for job in jobs if job.kind == "task"]
    run_jobs(independent, RayOptions(parallel=2), launcher=Counting())
    assert max(running) == 2


def test_a_lock_of_a_lost_machine_is_removed_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path):
        lock.forget_elsewhere(tmp_path)
        assert (tmp_path / lock.NAME).is_file(), "of a process of this machine"
        mine = json.loads((tmp_path / lock.NAME).read_text())
    theirs = mine | {"host": f"not-{socket.gethostname()}", "boot": "another"}
    (tmp_path / lock.NAME).write_text(json.dumps(theirs))
    with pytest.raises(FolderInUseError), hold(tmp_path):
        pass
    lock.forget_elsewhere(tmp_path)
    with hold(tmp_path):
        pass


def test_each_task_of_each_method_of_a_suite_is_a_job_after_the_backbone_of_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [
        "experiment=demo", "sequence=[shapes,landscape]", "backbone=image_transformer", "backbone.width=4", "backbone.blocks=0",
        "masks.trainable_copies=null", "compare.decoder_only=[]", "train.steps=2", "train.validation.every=2",
        "train.validation.precise_bn_batches=1", "evaluation.check_images=1", "evaluation.panels=1", "device.accelerator=cpu",
        *(f"tasks.{name}.data.count={{train: 4, val: 2, test: 2}}" for name in ("shapes", "landscape")),
    ]  # fmt: skip
    methods = {
        "masks": {"title": "Masks", "group": "mask", "overrides": ["method=piggyback"]},
        "tuned": {"title": "Tuned", "group": "reference", "overrides": ["method=finetune"]},
    }
    made = {"name": "tiny", "title": "Two", "overrides": small, "first": ["sequence=[shapes]"], "seeds": [0], "methods": methods}
    suite = checked(SuiteConfig, made, what="suite")
    launcher, out, store = InProcess(), tmp_path / "out", tmp_path / "store"
    monkeypatch.setattr("img2img.launch.scheduler.launcher_of", lambda options, *, cpu_only: launcher)
    jobs = backbone_jobs(suite, out, [0], []) + method_jobs(suite, out, ["masks", "tuned"], [0], [])
    assert launch_jobs("image_to_image", jobs, OPTIONS, store=store) == []
    masks = "masks, seed 0"
    assert [name for name, _ in launcher.started] == [
        "backbone, seed 0", f"{masks}: shapes", "tuned, seed 0", f"{masks}: landscape", masks,
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "masks" / "0" / "bundle" / "tasks").iterdir()) == [
        "landscape.safetensors", "shapes.safetensors",
    ]  # fmt: skip
    describe(suite, store, out)
    assert [(run.label, run.seed) for run in read_store(store)[1].values()] == [("masks", 0), ("tuned", 0)]
    backbones = {(folder / "bundle" / "backbone.safetensors").read_bytes() for folder in (out / "masks/0", out / "backbone/0")}
    assert len(backbones) == 1
    wrong = method_jobs(suite, tmp_path / "wrong", ["masks"], [0], [f"backbone_from={tmp_path / 'nowhere'}"])
    assert launch_jobs("image_to_image", wrong, OPTIONS, store=store) == wrong


# ---------------------------------------------------------------------- buckets


def test_a_run_in_a_bucket_is_that_of_a_folder(whole: Callable[..., Config], tmp_path: Path) -> None:
    names = ["disks", "colour", "edges"]
    img2img.run(whole("alone", sequence=names), bars=False)
    config = whole("unused", sequence=names, out="memory://bucket/run")
    launcher = launched(config, InProcess({"edges": 6}))
    assert ("edges", 1) in launcher.started
    store = Store("memory://bucket/run")
    assert not store._files("jobs")
    with store.copy("") as folder:
        assert files(folder / "bundle") == files(tmp_path / "alone" / "bundle")
        assert (folder / "report.html").is_file()
        assert not (folder / "status.json").exists()
    assert launched(config).started == [("join", 0)]
    with pytest.raises(InputError, match="no_such_protocol"):
        Store("no_such_protocol://bucket")


def test_only_changes_are_copied_into_a_bucket_oldest_first(tmp_path: Path) -> None:
    put: list[str] = []

    class Bucket:
        def put_file(self, source: str, target: str) -> None:
            put.append(target)

        def rm_file(self, target: str) -> None:
            put.append(f"no {target}")

    (tmp_path / "before").write_text("1")
    mirror = _Mirror(Bucket(), "b", tmp_path)
    for name in ("z", "y", "before", ".x.1-1-1.tmp", lock.NAME):
        (tmp_path / name).write_text("22")
    mirror.push()
    assert put == ["b/z", "b/y", "b/before"]
    put.clear()
    (tmp_path / "y").unlink()
    mirror.push()
    mirror.push()
    assert put == ["no b/y"]


# ---------------------------------------------------------------------- what a user gives


def test_options_of_launchers() -> None:
    assert read_launcher({"name": "ray", "gpus": 0.5}) == RayOptions(gpus=0.5)
    assert read_launcher({"name": "slurm", "parameters": {"account": "mine"}}) == SlurmOptions(parameters={"account": "mine"})
    for given, message in (
        ({"name": "rya"}, "did you mean 'ray'"),
        ({"name": "ray", "cpu": 2}, "did you mean 'cpus'"),
        ({"name": "ray", "partition": "gpu"}, "partition"),
        ({"name": "slurm", "retries": -1}, "retries"),
    ):
        with pytest.raises(InputError, match=message):
            read_launcher(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=demo", "launcher=rya"], "launcher=rya: did you mean 'ray'"),
        (["experiment=demo", "launcher=ray", "launcher.cpu=2"], "cpus"),
        (["experiment=demo", "launcher=ray", "device.devices=2"], "device.devices=2"),
        (["experiment=demo", "out=s3://bucket/run"], "launcher=ray"),
        (["--pipeline", "impresslearn", "+launcher=ray"], "leave launcher out"),
    ],
)
def test_commands_that_no_launcher_can_do_are_refused(arguments: list[str], message: str) -> None:
    done = run_command("train", *arguments)
    assert done.code == 1
    assert message in done.stderr


def test_the_launchers_options_are_part_of_the_composed_config() -> None:
    assert "minutes: 30" in run_command("train", "launcher=slurm", "launcher.minutes=30", "--cfg", "job").stdout
