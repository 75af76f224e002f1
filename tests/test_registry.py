"""Kinds and methods of a user's own, defined outside of the package, in runs and in bundles."""

import importlib
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import img2img
from img2img import InputError, MaskedNetwork, backbones, data
from img2img.api import run
from img2img.backbones import BACKBONES
from img2img.data import DATA, build_data
from img2img.masks import METHODS
from img2img.registry import Registry, import_modules
from img2img.tasks import TASKS, build_task, task_class
from img2img.training.config import read_experiment, task_fingerprint
from img2img.training.strategies import STRATEGIES, strategy_of

pytestmark = pytest.mark.usefixtures("registries")

TASK = """
from img2img.tasks import TASKS
from img2img.tasks.denoising import Denoising

@TASKS.register("grain")
class Grain(Denoising):
    baseline_name = "noise"
"""
NETWORK = """
from dataclasses import dataclass
from torch import nn
from img2img.backbones import BACKBONES, EncoderDecoder
from img2img.backbones.encoder_decoder import HeadShape
from img2img.data import DATA, Sample
from img2img.data.datasets.folder import ImageFolder
from img2img.masks import METHODS, Piggyback

@BACKBONES.register("plain")
class Plain(EncoderDecoder):
    def __init__(self, *, out_channels: int, width: int = 4):
        encoder, decoder = nn.Conv2d(3, width, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        spec = {"kind": "plain", "out_channels": out_channels, "width": width}
        super().__init__(
            encoder, decoder, HeadShape(width, 1), out_channels=out_channels, stride=1, min_size=1, spec=spec
        )

@DATA.register("negatives")
class Negatives(ImageFolder):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Sample(255 - sample.image, name=sample.name)

@METHODS.register("bold")
@dataclass(frozen=True, kw_only=True)
class Bold(Piggyback):
    init: float = 6e-3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module of a task, and one of the rest in a folder, and images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # of a script, which has not where it is started
    (tmp_path / "my_tasks.py").write_text(TASK)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "my_network.py").write_text(NETWORK)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def config(**changes: Any) -> dict[str, Any]:
    task = {"task": {"kind": "grain"}, "data": {"kind": "negatives", "root": "photos", "fractions": [0.4, 0.3, 0.3]}}
    return {
        "name": "own",
        "out": "run",
        "imports": ["my_tasks", "more/my_network.py"],
        "backbone": {"mode": "first_task", "kind": "plain"},
        "method": {"name": "bold"},
        "train": {"steps": 2, "batch_size": 2, "augmentation": {"crop": 16}, "schedule": {"warmup": 0}},
        "tasks": {"first": task, "second": task},
        "sequence": ["first", "second"],
        "device": {"accelerator": "cpu"},
        "evaluation": {"check_images": 1, "panels": 1},
    } | changes


def test_a_run_of_kinds_and_a_method_of_ones_own_and_its_bundle_in_another_process(here: Path) -> None:
    run(config())
    assert {name: task.kind for name, task in img2img.load("run").tasks.items()} == {"first": "grain", "second": "grain"}
    assert img2img.load("run").network.state("second").method.options()["init"] == 6e-3
    code = """if True:
        import json, sys, img2img
        from img2img.registry import import_modules
        said = []
        for module in ("more/my_network.py", "my_tasks", None):
            try:
                img2img.load("run").run("second", "photos/0.png").save("out.png")
            except img2img.InputError as error:
                said.append([str(error), any(name.startswith("my_") for name in sys.modules)])
            import_modules([module] if module else [])
        print(json.dumps(said))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (network, imported), (task, _) = json.loads(done.stdout)
    assert "backbone kind 'plain' is unknown" in network
    assert "task kind 'grain' is unknown" in task
    assert "import the module that defines it first: `import MODULE` in Python" in task
    assert not imported, "a bundle imports nothing"
    assert Image.open("out.png").size == (24, 24)


def test_where_a_module_is_does_not_matter_to_what_was_learned(here: Path) -> None:
    first = read_experiment(config())
    moved = read_experiment(config(imports=["more/my_network.py"]))
    for task, other in zip(first.tasks, moved.tasks, strict=True):
        assert task_fingerprint(first, task) == task_fingerprint(moved, other)


@pytest.mark.slow
def test_a_worker_process_that_is_spawned_reads_data_of_ones_own(here: Path) -> None:
    import_modules(["more/my_network.py"])
    parts = build_data(config()["tasks"]["first"]["data"])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        sample = pool.submit(parts.train.__getitem__, 0).result()
    np.testing.assert_array_equal(sample.image, 255 - np.asarray(Image.open(here / "photos" / sample.name)))


def test_data_may_cut_itself_into_parts(here: Path) -> None:
    @DATA.register("thirds")
    @data.by_part
    class Thirds(data.ImageDataset):
        def __init__(self, part: str, *, grey: int = 0) -> None:
            self.part, self.grey = part, grey

        def __len__(self) -> int:
            return {"train": 3, "val": 2, "test": 1}[self.part]

        def __getitem__(self, index: int) -> data.Sample:
            return data.Sample(np.full((8, 8, 3), self.grey, np.uint8))

    parts = build_data({"kind": "thirds", "grey": 7})
    assert [len(parts.train), len(parts.val), len(parts.test)] == [3, 2, 1]
    assert parts.val[0].image.max() == 7
    with pytest.raises(InputError, match=r"'thirds'.*'gray'.*mean 'grey'"):
        build_data({"kind": "thirds", "gray": 7})


def test_a_module_that_is_reloaded_or_a_cell_that_runs_again_gives_the_new_definition(here: Path) -> None:
    import_modules(["my_tasks"])
    (here / "my_tasks.py").write_text(TASK + '    baseline_name = "a grainy copy"\n')
    importlib.invalidate_caches()
    sys.modules["my_tasks"] = importlib.reload(sys.modules["my_tasks"])
    assert task_class("grain").baseline_name == "a grainy copy"
    notebook = ModuleType("my_notebook")
    sys.modules["my_notebook"] = notebook
    cell = TASK.replace("grain", "haze")
    for _ in range(2):
        exec(cell, vars(notebook))
        assert task_class("haze") is notebook.Grain


def test_one_file_under_two_module_names_is_one_module(here: Path) -> None:
    import_modules(["my_tasks"])
    spec = importlib.util.spec_from_file_location("my_tasks_again", here / "my_tasks.py")
    assert spec is not None
    sys.modules["my_tasks_again"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["my_tasks_again"])
    assert task_class("grain").__module__ == "my_tasks_again"


def test_two_modules_with_one_name_are_told_apart_in_one_message(here: Path) -> None:
    (here / "my_others.py").write_text(TASK.replace("Grain", "Other"))
    with pytest.raises(InputError, match=r"'grain'.*twice.*my_tasks.py.*my_o"):
        import_modules(["my_tasks", "my_others.py"])
    assert task_class("grain").__name__ == "Grain", "the first stays"


REGISTRIES: list[Registry[Any]] = [TASKS, DATA, BACKBONES, METHODS, STRATEGIES]
each_registry = pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.what)
OWN = {"task kind": "edges", "data kind": "pairs", "backbone kind": "lenet", "mask method": "supsup", "comparison method": "lwf"}


def derived(registry: Registry[Any]) -> type[Any]:
    """A class of a user's own that derives from one of img2img's in a registry."""
    return type("Mine", (registry[OWN[registry.what]],), {"__module__": __name__})


@each_registry
def test_the_decorator_enters_a_class_and_gives_it_back(registry: Registry[Any]) -> None:
    mine = derived(registry)
    assert registry.register("mine")(mine) is mine is registry.find("mine")
    assert not registry.has_own("mine")


@pytest.mark.parametrize(("registry", "attribute"), [(TASKS, "kind"), (METHODS, "name"), (STRATEGIES, "name")])
def test_the_decorator_sets_the_name_that_instances_have(registry: Registry[Any], attribute: str) -> None:
    mine = derived(registry)
    registry.register("mine")(mine)
    assert getattr(mine, attribute) == "mine"
    assert getattr(registry[OWN[registry.what]], attribute) == OWN[registry.what], "of the class that it derives from, too"
    with pytest.raises(InputError, match=f"'other' and has {attribute} = 'mine'"):
        registry.register("other")(mine)


@each_registry
@pytest.mark.parametrize("taken", ["own", "other"])
def test_a_name_that_is_taken_is_refused(registry: Registry[Any], taken: str) -> None:
    if taken == "other":
        registry.register("other")(type("Other", (derived(registry),), {"__module__": "my_other"}))
    name = OWN[registry.what] if taken == "own" else "other"
    with pytest.raises(InputError, match=f"{registry.what} '{name}' is defined twice, .*give yours another"):
        registry.register(name)(derived(registry))


@each_registry
@pytest.mark.parametrize("wrong", [dict, 3, {}], ids=repr)
def test_what_is_of_another_sort_is_refused(registry: Registry[Any], wrong: Any) -> None:
    with pytest.raises(InputError, match=f"registered as the {registry.what} 'mine': expected a class that derives from img2img"):
        registry.register("mine")(wrong)
    assert "mine" not in registry


def number() -> int:
    return 3


def anything(part: str):  # type: ignore[no-untyped-def]
    return 3


@each_registry
def test_a_function_is_entered_where_it_may_return_the_right_sort(registry: Registry[Any]) -> None:
    with pytest.raises(InputError, match=r"number in .* is registered as"):
        registry.register("mine")(number)
    if registry.what in ("data kind", "backbone kind"):
        assert registry.register("mine")(anything) is registry["mine"]
    else:
        with pytest.raises(InputError, match=r"anything in .* is registered as"):
            registry.register("mine")(anything)


@each_registry
@pytest.mark.parametrize("name", ["", None, dict], ids=repr)
def test_a_decorator_without_a_name_is_refused(registry: Registry[Any], name: Any) -> None:
    with pytest.raises(InputError, match=r"expected a name as text; write .*register\('mine'\)"):
        registry.register(name)


def test_a_mask_method_that_is_not_registered_is_refused_before_it_is_trained() -> None:
    method = derived(METHODS)()
    with pytest.raises(InputError, match=r"Mine in .* is no registered mask method.*@METHODS\.register\('mine'\)"):
        MaskedNetwork(nn.Linear(3, 2)).add_task("a", method)


def test_a_comparison_method_and_a_mask_method_may_not_share_a_name() -> None:
    METHODS.register("lwf")(derived(METHODS))
    with pytest.raises(InputError, match="'lwf' is a comparison method and a mask method here"):
        strategy_of({"name": "lwf"})


@each_registry
def test_every_name_of_img2imgs_own_is_found_and_an_unknown_one_says_how_to_bring_it(registry: Registry[Any]) -> None:
    assert len(registry) == len(list(registry)) > 3
    assert all(callable(registry.find(name)) for name in registry)
    for name in ("mine", None, ["unhashable"]):
        with pytest.raises(InputError, match=r"known: .*imports=\[MODULE\].*--import MODULE"):
            registry.find(name)


def test_a_backbone_of_ones_own_need_not_know_weights(here: Path) -> None:
    import_modules(["more/my_network.py"])
    spec = {"kind": "plain", "out_channels": 2}
    assert backbones.build_backbone(spec | {"weights": None}).spec == spec | {"width": 4}
    with pytest.raises(InputError, match="backbone 'plain' has no option 'weights'"):
        backbones.build_backbone(spec | {"weights": "imagenet"})


def test_what_a_backbone_of_ones_own_must_be_is_checked() -> None:
    @BACKBONES.register("odd")
    def odd(*, out_channels: int) -> backbones.Backbone:
        return backbones.build_backbone({"kind": "lenet", "out_channels": out_channels})

    with pytest.raises(InputError, match=r"'odd'.*'lenet'.*Backbone"):
        backbones.build_backbone({"kind": "odd", "out_channels": 2})
    BACKBONES.register("worse")(lambda: 3)
    with pytest.raises(InputError, match="kind 'worse' built a int: expected a Backbone"):
        backbones.build_backbone({"kind": "worse"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nowhere", "'my_nowhere'.*install it"),
        ("my_tasks.more", "no module 'my_tasks.more'"),
        ("nowhere.py", "'nowhere.py'.*correct the path"),
        ("my-tasks", "name of a module.*ends in .py"),
        ("more/my-file.py", "file name of letters, digits"),
        ("more/json.py", "'json'.*rename the file"),
        (3, "imports got 3"),
    ],
)
def test_a_module_that_is_not_there_is_one_message(here: Path, name: Any, message: str) -> None:
    (here / "more" / "my-file.py").touch()
    (here / "more" / "json.py").touch()
    with pytest.raises(InputError, match=message):
        import_modules([name])


def test_one_name_in_place_of_a_list_is_refused(here: Path) -> None:
    with pytest.raises(InputError, match="imports: 'my_tasks'"):
        read_experiment(config(imports="my_tasks"))


def test_what_a_module_itself_needs_and_raises_goes_through(here: Path) -> None:
    (here / "my_needy.py").write_text("import my_missing_library")
    with pytest.raises(ModuleNotFoundError, match="my_missing_library"):
        import_modules(["my_needy"])
    assert build_task({"kind": "denoising"}).kind == "denoising"


def test_a_module_of_a_config_that_fails_is_one_message_which_says_where(here: Path) -> None:
    (here / "my_broken.py").write_text("x = 1\nraise ZeroDivisionError('boom')\n")
    with pytest.raises(
        InputError, match=r"imports my_broken: \S*my_broken\.py, line 2: ZeroDivisionError: boom.*correct it"
    ) as caught:
        read_experiment(config(imports=["my_broken"]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError), "for who wants the traceback"
