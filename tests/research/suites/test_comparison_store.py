"""Storing runs, the summary of a suite, and what describes masks and outputs without the weights."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from comparison_suite import ABOUT, add_run, make_suite, results, write_run
from PIL import Image
from torch import Tensor, nn

from img2img import MaskedNetwork, masks
from img2img.data.base import ImageDataset, Sample
from img2img.errors import InputError
from img2img.files.lock import FolderInUseError, hold
from img2img.research.suites.mask_figures import affected_by_layer
from img2img.research.suites.schema import Summary
from img2img.research.suites.store import describe_store, read_store, store_run
from img2img.research.suites.suite import read_suite
from img2img.research.suites.summary import summary_of
from img2img.tasks.base import Example
from img2img.training.mask_report import Masks, describe_masks, read_masks
from img2img.training.output_images import read_strip, save_outputs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as an experiment leaves it, weights included."""
    folder = tmp_path / "run"
    write_run(folder, "piggyback", 0)
    (folder / "config.yaml").unlink()
    config = {
        "data_root": "/home/someone/data/",
        "out": "/home/someone/runs/real",
        "seed": 3,
        "hydra": {"run": {"dir": "/home/someone/runs"}},
        "tasks": {"streets": {"data": {"root": "/home/someone/data/camvid", "paths": ["${data_root}/a", "/home/someone/data"]}}},
        "note": "a/b, 1/2",
        "elsewhere": "/home/someone/database/x",
        "windows": "C:\\data\\y",
    }
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for name in ("bundle/backbone.safetensors", "checkpoints/streets.pt", "log.txt", "report.html", "metrics/x.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"0")
    return folder


def test_a_stored_run_is_one_line_with_what_a_page_needs(run: Path, tmp_path: Path) -> None:
    record = store_run(run, tmp_path / "suite", label="piggyback", seed=3)
    assert [path.name for path in (tmp_path / "suite").iterdir()] == ["runs.jsonl"]
    first, second = (tmp_path / "suite" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {"version": 1, "suite": "suite", "title": "suite"}
    given, stored = results("piggyback", 0), json.loads(second)
    assert (stored["label"], stored["seed"], stored["environment"]) == ("piggyback", 3, given["environment"])
    assert stored["value_matrix"] == given["forgetting"]["value_matrix"]
    for task, kept in zip(given["tasks"], stored["tasks"], strict=True):
        assert {key: kept[key] for key in ("name", "value", "bytes", "train_seconds", "metrics")} == {
            **{key: task[key] for key in ("name", "value", "bytes", "train_seconds")}, "metrics": task["metrics"]
        }  # fmt: skip
        assert (kept["baseline"], kept["baseline_metrics"]) == (task["baseline"], task["baseline_metrics"])
        assert [step for step, _ in kept["curve"]] == [10, 20, 30, 40]
        assert kept["curve"][-1][1] == kept["value"]
    assert stored["masks"]["tasks"]["colour"]["densities"] == [0.9, 0.8, 0.7, 0.6]
    assert read_suite(tmp_path / "suite").runs[0].record == record


def test_a_stored_config_is_that_of_the_run_and_names_nothing_of_the_machine(run: Path, tmp_path: Path) -> None:
    config = store_run(run, tmp_path / "suite", label="piggyback", seed=3).config
    assert "someone" not in (tmp_path / "suite" / "runs.jsonl").read_text(encoding="utf-8")
    assert config == {
        "data_root": "DATA/",
        "out": "real",
        "seed": 3,
        "tasks": {"streets": {"data": {"root": "DATA/camvid", "paths": ["${data_root}/a", "DATA"]}}},
        "note": "a/b, 1/2",
        "elsewhere": "x",
        "windows": "y",
    }


def test_storing_again_replaces_the_earlier_run_alone(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "suite"
    for label, seed in (("b", 0), ("a", 10), ("a", 2)):
        store_run(run, store, label=label, seed=seed)
    describe_store(store, ABOUT)
    before = (store / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "masks.json").unlink()
    store_run(run, store, label="a", seed=10)
    after = (store / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    about, runs = read_store(store)
    assert about == ABOUT
    assert [(record.label, record.seed) for record in runs.values()] == [("a", 2), ("a", 10), ("b", 0)]
    assert [i for i in range(4) if before[i] != after[i]] == [2], "lines that did not change are the same, byte for byte"
    assert "masks" not in json.loads(after[2])


@pytest.mark.parametrize(
    ("label", "seed", "found"),
    [("", 0, "the label ''"), ("a/b", 0, "'a/b'"), (".a", 0, "'.a'"), ("a", -1, "the seed -1"), ("a", True, "the seed True")],
)
def test_labels_and_seeds_that_cannot_be_used_are_refused(run: Path, tmp_path: Path, label: str, seed: int, found: str) -> None:
    with pytest.raises(InputError, match=found):
        store_run(run, tmp_path / "suite", label=label, seed=seed)
    assert not (tmp_path / "suite").exists()


def test_a_kill_while_storing_leaves_the_earlier_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "suite"
    store_run(run, store, label="a", seed=0)
    before = (store / "runs.jsonl").read_bytes()
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):

        def stopped(*_: Any, error: BaseException = error) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.replace", stopped)
            with pytest.raises(type(error)):
                store_run(run, store, label="b", seed=0)
        assert (store / "runs.jsonl").read_bytes() == before
        assert [path.name for path in store.iterdir()] == ["runs.jsonl"]
    ended = multiprocessing.get_context("fork").Process(target=int)
    ended.start()
    ended.join()
    (store / f".runs.jsonl.{ended.pid}.tmp").touch()  # of a process that was killed
    store_run(run, store, label="b", seed=0)
    assert [path.name for path in store.iterdir()] == ["runs.jsonl"]
    with hold(store):
        monkeypatch.setattr("img2img.research.suites.store.PATIENCE", 0.1)
        with pytest.raises(FolderInUseError, match="suite is in use by"):
            store_run(run, store, label="a", seed=0)


def test_two_suites_at_once_lose_no_run(run: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    labels = [f"m{i}" for i in range(6)]
    processes = [context.Process(target=_store_some, args=(run, tmp_path / "suite", labels[i::2])) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [record.label for record in read_store(tmp_path / "suite")[1].values()] == labels


def _store_some(run: Path, store: Path, labels: list[str]) -> None:
    for label in labels:
        store_run(run, store, label=label, seed=0)


def test_a_run_that_is_not_finished_or_damaged_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "config" / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml cannot be read"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    (run / "config" / "config.yaml").write_text("a: 1", encoding="utf-8")
    (run / "masks.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"masks\.json lacks layers"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    (run / "masks.json").unlink()
    (run / "metrics" / "colour.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"colour\.csv is not a training log"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    (run / "metrics" / "colour.csv").unlink()
    (run / "results.json").write_text(json.dumps(results("finetune", 0) | {"shared_bytes": -1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"results\.json.*shared_bytes.*-1"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    (run / "results.json").unlink()
    with pytest.raises(InputError, match=r"has no results\.json"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    assert not (tmp_path / "suite").exists()


def test_a_damaged_store_is_left_as_it_is(run: Path, tmp_path: Path) -> None:
    store_run(run, tmp_path / "suite", label="a", seed=0)
    with open(tmp_path / "suite" / "runs.jsonl", "a", encoding="utf-8") as file:
        file.write('{"label": "b"')
    before = (tmp_path / "suite" / "runs.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"runs\.jsonl, line 3 is not valid JSON"):
        store_run(run, tmp_path / "suite", label="c", seed=0)
    assert (tmp_path / "suite" / "runs.jsonl").read_bytes() == before


def test_the_summary_has_mean_sample_deviation_seeds_and_bytes(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    summary = summary_of(read_suite(suite))
    text = (suite / "summary.json").read_text(encoding="utf-8")
    assert Summary.model_validate_json(text) == summary
    assert json.loads(text).keys() == {"version", "suite", "commit", "hardware", "tasks", "methods"}
    assert (summary.suite, summary.commit, summary.hardware) == ("made", "abc123", "machine 0, machine 1")
    colour = {"name": "colour", "primary_metric": "ab error", "higher_is_better": False, "baseline": 200.0}
    assert summary.tasks[1].model_dump() == colour
    assert set(summary.methods) == {"piggyback", "sequential", "finetune"}
    cell = summary.methods["piggyback"]["colour"].model_dump()
    assert cell == {"mean": 110.0, "std": pytest.approx(200**0.5), "seeds": 2, "bytes": 30_500}
    # After the whole sequence: (0.1 + 0.3) / 2, not the 0.75 of when it was learned.
    streets = summary.methods["sequential"]["streets"].model_dump()
    assert streets == {"mean": pytest.approx(0.2), "std": pytest.approx(0.02**0.5), "seeds": 2, "bytes": 2_500}


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    add_run(tmp_path, "piggyback", results("piggyback", 1), seed=7)
    entry = summary_of(read_suite(tmp_path)).methods["piggyback"]["edges"]
    assert entry.model_dump() == {"mean": 1200.0, "std": None, "seeds": 1, "bytes": 31_000}


PUBLISHED = sorted(path.parent for path in (Path(__file__).parents[3] / "docs" / "results").glob("*/summary.json"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_published_suites_can_be_read_and_their_summaries_are_those_of_their_runs(folder: Path) -> None:
    summary = Summary.model_validate_json((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary.suite == folder.name
    if (folder / "runs.jsonl").is_file():
        assert summary_of(read_suite(folder)) == summary
    else:
        assert (folder / "results.json").is_file(), "a study, which pipelines/impresslearn.py runs"


@pytest.mark.parametrize("folder", [path for path in PUBLISHED if (path / "runs.jsonl").is_file()], ids=lambda path: path.name)
def test_published_runs_of_several_trainings_a_task_have_the_best_validation_of_the_last(folder: Path) -> None:
    for run in read_store(folder)[1].values():
        for task in run.tasks if run.method in ("lwf", "packnet", "cpg") else ():
            assert (task.val is None) == (not task.curve)
            best, ends = max if task.higher_is_better else min, [step for step, _ in task.curve]
            # The last training began where a validation ended the one before, or at 0.
            starts = [0, *ends] if task.curve else []
            parts = [[(step - start, value) for step, value in task.curve if step > start] for start in starts]
            assert not parts or any((task.best_step, task.val) in part and best(v for _, v in part) == task.val for part in parts)


# ------------------------------------------------------------------ masks


class Net(nn.Module):
    """Two parts and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(2, 2, 3)
        self.decoder = nn.Conv2d(2, 4, 3)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.decoder(self.encoder(x)))
        return y


@pytest.fixture
def network() -> MaskedNetwork:
    """Tasks of four methods with masks that are known."""
    network = MaskedNetwork(Net(), head="head")
    for name, method in (
        ("none", masks.Identity()), ("bits", masks.Piggyback()), ("affine", masks.Affine()), ("ksm", masks.KSM())
    ):  # fmt: skip
        network.add_task(name, method, head=nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        found = {name: dict(network.state(name).named_masks()) for name in network.tasks()}
        found["bits"]["encoder.weight"].score[0] = -1.0  # 18 of 36
        found["affine"]["decoder.weight"].score[0] = -1.0  # 18 of 72
        found["affine"]["encoder.weight"].k1.fill_(0.25)
        score = found["ksm"]["encoder.weight"].score.view(4)
        score.copy_(torch.tensor([0.01, 0.004, 0.002, 1e-6]))
    return network


@pytest.mark.parametrize("frozen", [False, True])
def test_masks_are_described_by_layer(network: MaskedNetwork, frozen: bool, tmp_path: Path) -> None:
    if frozen:
        for task in network.tasks():
            network.freeze_task(task)
    found = describe_masks(network)
    (tmp_path / "masks.json").write_text(json.dumps(found), encoding="utf-8")
    assert read_masks(tmp_path / "masks.json") == Masks.model_validate(found)
    assert found["layers"] == [
        {"name": "encoder.weight", "weights": 36},
        {"name": "decoder.weight", "weights": 72},
    ]
    assert [layer.part for layer in read_masks(tmp_path / "masks.json").layers] == ["encoder", "decoder"]
    tasks = found["tasks"]
    assert [tasks[name]["method"] for name in tasks] == ["identity", "piggyback", "affine", "ksm"]
    assert tasks["none"] == {"method": "identity", "density": None, "zeroed": None, "densities": [None, None], "values": {}}
    assert tasks["bits"]["densities"] == [0.5, 1.0]
    assert tasks["bits"]["zeroed"] == pytest.approx(18 / 108)
    assert tasks["affine"]["values"]["k0"] == pytest.approx([1.0, 1.0])
    assert tasks["affine"]["values"]["k1"][0] == pytest.approx(0.25)
    # Of four kernels one is kept, two are scaled by 0.4 and 0.2, and one by 0.0001, which counts as zero.
    kernels = tasks["ksm"]["kernels"]
    assert {name: values[0] for name, values in kernels.items()} == {"ones": 0.25, "scaled": 0.5, "zero": 0.25}
    assert [values[1] for values in kernels.values()] == [1.0, 0.0, 0.0]
    assert tasks["ksm"]["values"]["scale"][0] == pytest.approx(0.2, abs=1e-3)
    assert tasks["ksm"]["values"]["scale"][1] is None
    assert not any("kernels" in tasks[name] for name in ("none", "bits", "affine"))
    assert found["similarity"]["names"] == ["bits", "affine", "ksm"]
    # The masks of bits and affine differ in 18 + 18 of 108 places.
    assert found["similarity"]["equal"][0][1] == pytest.approx(72 / 108)
    # In each layer one of the two is all ones: 18 + 54 equal ones are what chance gives at these densities.
    assert found["similarity"]["kappa"][0][1] == pytest.approx(0)


def test_masks_that_move_weights_say_so_and_zero_none() -> None:
    network = MaskedNetwork(Net(), head="head")
    network.add_task("a", masks.SparseSigns(), head=nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        dict(network.state("a").named_masks())["encoder.weight"].score[0] = -1.0  # 18 of 36, of 108
    found = Masks.model_validate(describe_masks(network)).tasks["a"]
    assert (found.effect, found.affected, found.zeroed) == ("moved", pytest.approx(18 / 108), None)
    assert found.values["scale"][0] is not None
    (axes,) = affected_by_layer(Masks.model_validate(describe_masks(network))).axes
    assert axes.get_ylabel() == "moved weights [%]"
    assert list(axes.lines[0].get_ydata()) == pytest.approx([50.0, 0.0])


def test_a_hard_ksm_mask_has_no_scaled_kernels() -> None:
    network = MaskedNetwork(Net(), head="head")
    network.add_task("a", masks.KSM(soft=False), head=nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        dict(network.state("a").named_masks())["encoder.weight"].score.view(4)[:1] = 0.0
    kernels = describe_masks(network)["tasks"]["a"]["kernels"]
    assert [kernels[key][0] for key in ("ones", "scaled", "zero")] == [0.75, 0.0, 0.25]


def test_a_network_without_tasks_has_its_layers_alone() -> None:
    found = describe_masks(MaskedNetwork(Net(), head="head"))
    assert len(found["layers"]) == 2
    assert found["tasks"] == {}
    assert found["similarity"] == {"names": [], "equal": [], "kappa": []}


# ------------------------------------------------------------------ outputs


class Greys(ImageDataset):
    """Image i is grey of the value 20 i."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        height = 40 if index % 2 else 60
        return Sample(image=torch.full((height, 80, 3), 20 * index, dtype=torch.uint8).numpy())


class Negative:
    """A task whose output is the negative and whose target is white."""

    def example(self, batch: Any) -> Example:
        return Example(batch.image.float() / 255, torch.ones_like(batch.image.float()))

    def to_image(self, prediction: Tensor, input: Tensor) -> Tensor:
        return 1 - prediction

    def reference(self, example: Example) -> Tensor:
        return example.target


def test_outputs_are_rows_of_evenly_spread_test_images(tmp_path: Path) -> None:
    task_data = SimpleNamespace(task=Negative(), parts=SimpleNamespace(test=Greys()))
    evaluator = SimpleNamespace(device=torch.device("cpu"), predict=lambda network, task, input: network(input))
    runner = SimpleNamespace(task_data={"greys": task_data}, evaluator=evaluator, run_of=lambda name: lambda x: x)
    paths = save_outputs(runner, tmp_path, count=3)
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["inputs/greys.jpg", "outputs/greys.jpg", "targets/greys.jpg"]
    values = {}
    for path in paths:
        strip = read_strip(path)
        assert strip is not None
        # 80 x 60 and 80 x 40 images, twice as large, in tiles that hold the larger.
        assert [tile.size for tile in strip.tiles] == [(160, 120)] * 3
        values[path.parent.name] = [round(sum(tile.getpixel((80, 60))) / 3) for tile in strip.tiles]  # type: ignore[arg-type]
    assert values["inputs"] == pytest.approx([0, 60, 120], abs=3)  # images 0, 3 and 6
    assert values["outputs"] == pytest.approx([255, 195, 135], abs=3)
    assert values["targets"] == [255, 255, 255]
    with Image.open(paths[0]) as image:
        assert image.convert("L").getpixel((160 + 80, 5)) > 250  # beyond a smaller image it is white


def test_mask_methods_that_are_not_described_are_known_by_their_name(tmp_path: Path) -> None:
    add_run(tmp_path, "b", results("piggyback", 0))
    add_run(tmp_path, "a", results("finetune", 0))
    suite = read_suite(tmp_path)
    assert [(method.label, method.group) for method in suite.methods] == [("b", "mask"), ("a", "comparison")]
