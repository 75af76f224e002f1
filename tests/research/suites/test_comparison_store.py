"""Storing runs, the summary of a suite, and what describes masks and outputs without the weights."""

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from comparison_suite import make_suite, results, write_run
from PIL import Image
from torch import Tensor, nn

from img2img import MaskedNetwork, masks
from img2img.data.base import ImageDataset, Sample
from img2img.errors import InputError
from img2img.files.lock import FolderInUseError, hold
from img2img.research.suites.store import store_run, summarise, write_summary
from img2img.research.suites.suite import read_suite
from img2img.tasks.base import Example
from img2img.training.mask_report import describe_masks, read_masks
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


def test_a_stored_run_has_what_a_page_needs_and_no_weights(run: Path, tmp_path: Path) -> None:
    stored = store_run(run, tmp_path / "suite", label="piggyback", seed=3)
    assert stored == tmp_path / "suite" / "runs" / "piggyback" / "3"
    pictures = {f"{kind}/{task}.jpg" for kind in ("inputs", "outputs", "targets") for task in ("streets", "colour", "edges")}
    logs = {f"metrics/{task}.csv" for task in ("streets", "colour", "edges")}
    found = {str(path.relative_to(stored)) for path in stored.rglob("*") if path.is_file()}
    assert found == {"results.json", "config.yaml", "masks.json"} | logs | pictures
    assert (stored / "results.json").read_bytes() == (run / "results.json").read_bytes()
    assert [path.name for path in stored.parent.iterdir()] == ["3"]
    assert read_suite(tmp_path / "suite").runs[0].seed == 3


def test_a_stored_config_says_nothing_of_the_machine(run: Path, tmp_path: Path) -> None:
    stored = store_run(run, tmp_path / "suite", label="piggyback", seed=3)
    text = (stored / "config.yaml").read_text(encoding="utf-8")
    assert "someone" not in text
    assert yaml.safe_load(text) == {
        "data_root": "DATA/",
        "out": "real",
        "seed": 3,
        "tasks": {"streets": {"data": {"root": "DATA/camvid", "paths": ["${data_root}/a", "DATA"]}}},
        "note": "a/b, 1/2",
        "elsewhere": "x",
        "windows": "y",
    }


def test_storing_again_replaces_the_earlier_run_and_pictures_can_be_left_out(run: Path, tmp_path: Path) -> None:
    stored = store_run(run, tmp_path / "suite", label="a", seed=0)
    (stored / "stale.txt").write_text("x", encoding="utf-8")
    (run / "masks.json").unlink()
    store_run(run, tmp_path / "suite", label="a", seed=0, pictures=False)
    assert sorted(path.name for path in stored.iterdir()) == ["config.yaml", "metrics", "results.json"]


@pytest.mark.parametrize(
    ("label", "seed", "said"),
    [("", 0, "the label ''"), ("a/b", 0, "'a/b'"), (".a", 0, "'.a'"), ("a", -1, "the seed -1"), ("a", True, "the seed True")],
)
def test_labels_and_seeds_that_name_no_folder_are_refused(run: Path, tmp_path: Path, label: str, seed: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        store_run(run, tmp_path / "suite", label=label, seed=seed)
    assert not (tmp_path / "suite").exists()


def test_a_kill_while_storing_leaves_the_earlier_run_and_what_it_left_is_cleared(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store_run(run, tmp_path / "suite", label="a", seed=0)
    before = (stored / "results.json").read_bytes()

    def full(config: Path) -> str:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("img2img.research.suites.store.plain_config", full)
        with pytest.raises(OSError, match="No space"):
            store_run(run, tmp_path / "suite", label="a", seed=0)
    assert (stored / "results.json").read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == ["0"]
    real = Path.rename

    def interrupted(path: Path, target: Path) -> None:
        if target == stored:
            monkeypatch.setattr(Path, "rename", real)
            raise KeyboardInterrupt
        real(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    assert (stored / "results.json").read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == ["0"]
    ended = multiprocessing.get_context("fork").Process(target=int)
    ended.start()
    ended.join()
    half = stored.with_name(f".0.{ended.pid}.tmp")  # a version before, killed
    half.mkdir()
    (half / "results.json").touch()
    store_run(run, tmp_path / "suite", label="a", seed=0)
    assert [path.name for path in stored.parent.iterdir()] == ["0"]
    with hold(stored.parent):
        monkeypatch.setattr("img2img.research.suites.store._PATIENCE", 0.1)
        with pytest.raises(FolderInUseError, match="a is in use by"):
            store_run(run, tmp_path / "suite", label="a", seed=0)


def test_a_run_that_is_not_finished_or_damaged_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "config" / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml cannot be read as the config of a run"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    (run / "masks.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"masks\.json lacks 'schema'"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    (run / "results.json").unlink()
    with pytest.raises(InputError, match=r"has no results\.json"):
        store_run(run, tmp_path / "suite", label="a", seed=0)
    assert list((tmp_path / "suite").rglob("*.json")) == []


def test_the_summary_has_mean_sample_deviation_seeds_and_bytes(tmp_path: Path) -> None:
    suite = make_suite(tmp_path / "suite")
    summary = summarise(suite)
    assert json.loads(write_summary(suite).read_text(encoding="utf-8")) == summary
    assert summary.keys() == {"suite", "commit", "hardware", "tasks", "methods"}
    assert (summary["suite"], summary["commit"], summary["hardware"]) == ("made", "abc123", "machine 0, machine 1")
    assert summary["tasks"][1] == {"name": "colour", "metric": "ab error", "higher_is_better": False, "trivial": 200.0}
    assert set(summary["methods"]) == {"piggyback", "sequential", "finetune"}
    colour = summary["methods"]["piggyback"]["colour"]
    assert colour == {"mean": 110.0, "std": pytest.approx(200**0.5), "seeds": 2, "bytes": 30_500}
    # After the whole sequence: (0.1 + 0.3) / 2, not the 0.75 of when it was learned.
    streets = summary["methods"]["sequential"]["streets"]
    assert streets == {"mean": pytest.approx(0.2), "std": pytest.approx(0.02**0.5), "seeds": 2, "bytes": 2_500}


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "piggyback" / "7", "piggyback", 1)
    entry = summarise(tmp_path)["methods"]["piggyback"]["edges"]
    assert entry == {"mean": 1200.0, "std": None, "seeds": 1, "bytes": 31_000}


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
    assert read_masks(tmp_path / "masks.json") == found
    assert found["layers"] == [
        {"name": "encoder.weight", "weights": 36, "part": "encoder"},
        {"name": "decoder.weight", "weights": 72, "part": "decoder"},
    ]
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
    """Picture i is grey of the value 20 i."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        height = 40 if index % 2 else 60
        return Sample(image=torch.full((height, 80, 3), 20 * index, dtype=torch.uint8).numpy())


class Negative:
    """A task whose output is the negative and whose target is white."""

    def example(self, batch: Any) -> Example:
        return Example(batch.image.float() / 255, torch.ones_like(batch.image.float()))

    def picture(self, prediction: Tensor, input: Tensor) -> Tensor:
        return 1 - prediction

    def reference(self, example: Example) -> Tensor:
        return example.target


def test_outputs_are_rows_of_evenly_spread_test_pictures(tmp_path: Path) -> None:
    task_data = SimpleNamespace(task=Negative(), parts=SimpleNamespace(test=Greys()))
    evaluator = SimpleNamespace(device=torch.device("cpu"), predict=lambda network, task, input: network(input))
    runner = SimpleNamespace(task_data={"greys": task_data}, evaluator=evaluator, run_of=lambda name: lambda x: x)
    paths = save_outputs(runner, tmp_path, count=3)
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["inputs/greys.jpg", "outputs/greys.jpg", "targets/greys.jpg"]
    values = {}
    for path in paths:
        strip = read_strip(path)
        assert strip is not None
        # 80 x 60 and 80 x 40 pictures, twice as large, in tiles that hold the larger.
        assert [tile.size for tile in strip.tiles] == [(160, 120)] * 3
        values[path.parent.name] = [round(sum(tile.getpixel((80, 60))) / 3) for tile in strip.tiles]  # type: ignore[arg-type]
    assert values["inputs"] == pytest.approx([0, 60, 120], abs=3)  # pictures 0, 3 and 6
    assert values["outputs"] == pytest.approx([255, 195, 135], abs=3)
    assert values["targets"] == [255, 255, 255]
    with Image.open(paths[0]) as image:
        assert image.convert("L").getpixel((160 + 80, 5)) > 250  # beyond a smaller picture it is white


def test_without_a_suite_json_mask_methods_are_known_by_their_name(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "b" / "0", "piggyback", 0)
    (tmp_path / "runs" / "a" / "0").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "0" / "results.json").write_text(json.dumps(results("finetune", 0)), encoding="utf-8")
    suite = read_suite(tmp_path)
    assert [(method.label, method.group) for method in suite.methods] == [("b", "mask"), ("a", "comparison")]
