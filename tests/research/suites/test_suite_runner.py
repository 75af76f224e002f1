"""A suite: its runs' command lines, and two methods run by processes of the pipeline and stored."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script

from img2img import InputError
from img2img.files.lock import hold
from img2img.masks import Affine, ImpressLearn, SupSup
from img2img.research.suites.runner import SuiteConfig, _cause, about, backbone_jobs, describe, load_suite, method_jobs, run_jobs
from img2img.research.suites.sheets import read_sheet
from img2img.research.suites.store import read_store
from img2img.training.compose import compose, plain_config
from img2img.training.config import BasisOfTasks, Experiment, RandomBasis, backbone_fingerprint, read_experiment
from img2img.validation import checked

pytestmark = pytest.mark.usefixtures("without_curves")

ROOT = Path(__file__).parents[3]


def _suite(**changes: Any) -> SuiteConfig:
    return checked(
        SuiteConfig,
        {
            "name": "tiny",
            "title": "Two methods",
            "overrides": [
                "experiment=demo",
                "backbone=image_transformer",
                "backbone.width=4",
                "backbone.blocks=1",
                "masks.trainable_copies=null",
                "evaluation.check_images=1",
            ],
            "first": ["sequence=[shapes]"],
            "seeds": [0],
            "methods": {
                "masks": {"title": "Masks", "group": "mask", "overrides": ["method=piggyback"]},
                "tuned": {"title": "Tuned", "group": "reference", "overrides": ["method=finetune"]},
            },
            **changes,
        },
        what="suite",
    )


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "suite").glob("*.yaml")), ids=lambda f: f.stem)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["options", "values"])
def test_every_run_of_a_shipped_suite_composes_and_is_accepted(file: Path, every: bool, tmp_path: Path) -> None:
    """Of the runs that have the same options with other values all, or one for each set of options."""
    suite = load_suite(file)
    assert suite.name == file.stem
    more = [
        "data_root=somewhere",
        *(["backbone=lite0_unet"] if suite.name == "small_sets" else []),
    ]  # whose bundle is to be given
    jobs = backbone_jobs(suite, tmp_path, [0], more) + method_jobs(suite, tmp_path, list(suite.methods), suite.seeds, more)
    assert len({job.folder for job in jobs}) == len(jobs)
    # Runs of a label differ by their seed and folders alone: the first seed's stand for the others'.
    labels: dict[str, set[tuple[str, ...]]] = {}
    for job in jobs:
        alone = (f"seed={job.seed}", f"out={job.folder}", f"backbone_from={tmp_path / 'backbone' / str(job.seed)}")
        labels.setdefault(job.label, set()).add(tuple(each for each in job.overrides if each not in alone))
    assert all(len(overrides) == 1 for overrides in labels.values())
    chosen = {job.label: job for job in reversed(jobs)}
    if not every:
        options = {tuple(each.split("=")[0] for each in job.overrides): label for label, job in chosen.items()}
        chosen = {label: chosen[label] for label in {"backbone", *options.values()} & set(chosen)}
    first = None
    for job in chosen.values():
        experiment = read_experiment(plain_config(compose(suite.pipeline, job.overrides)))
        # Every method of a seed takes the backbone that its first job trains, but for those that want another.
        if job.seed == 0 and (job.label == "backbone" or experiment.backbone_from is not None):
            fingerprint = backbone_fingerprint(experiment)
            first = first or fingerprint
            assert fingerprint == first


def _experiments(name: str, *labels: str) -> dict[str, Experiment]:
    """The experiment of each method of a shipped suite, or of some, for its first seed."""
    suite = load_suite(ROOT / "configs" / "suite" / f"{name}.yaml")
    jobs = method_jobs(suite, Path("out"), list(labels or suite.methods), suite.seeds[:1], ["data_root=DATA"])
    return {job.label: read_experiment(plain_config(compose(suite.pipeline, job.overrides))) for job in jobs}


def test_a_suite_takes_from_its_base_what_it_has_not_itself(tmp_path: Path) -> None:
    method = "{title: A, group: mask, overrides: [method=ksm]}"
    options = "title: One\npipeline: cifar100\nseeds: [3]\nfirst: [a=1]\noverrides: [b=1]\n"
    (tmp_path / "one.yaml").write_text(f"name: one\n{options}methods: {{a: {method}, c: {method}}}\n")
    (tmp_path / "two.yaml").write_text("base: one\nname: two\ntitle: Two\noverrides: [b=2]\nfirst: null\nmethods: [c]\n")
    one, two = load_suite(tmp_path / "one.yaml"), load_suite(tmp_path / "two.yaml")
    assert (two.name, two.title, two.overrides, two.first) == ("two", "Two", ["b=2"], None)
    assert (two.pipeline, two.seeds, two.methods) == ("cifar100", [3], {"c": one.methods["c"]})
    (tmp_path / "three.yaml").write_text("base: one\nname: three\ntitle: Three\n")
    assert load_suite(tmp_path / "three.yaml").methods == one.methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: one\nname: two", "no suite 'one': expected one of plain, two"),
        ("base: pacs\nname: two\nmethods: [d]", "the base 'pacs' has no method 'd'; it has piggyback, "),
        ("name: two", "needs the option 'title'"),
        ("- name", "holds a list: expected a suite"),
        ("base: pacs\nseed: 1", "no option 'seed': did you mean 'seeds'"),
        ("base: two", "it is a base of its own, by way of two"),
        ("base: plain\nmethods: [d]", "the base 'plain' has no method 'd'; it has none"),
        ("base: pacs\nseeds: [7]\nmethods: {a: {title: A, group: mask, overrides: [], seeds: [7, 8]}}", "has 8: expected some"),
    ],
)
def test_a_suite_that_cannot_be_read_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(text)
    (tmp_path / "plain.yaml").write_text("name: plain")
    if "pacs" in text:
        shutil.copy(ROOT / "configs" / "suite" / "pacs.yaml", tmp_path)
    with pytest.raises(InputError, match=message):
        load_suite(tmp_path / "two.yaml")


@pytest.mark.slow
def test_piggybacks_table_5_comes_out_of_one_suite() -> None:
    found = _experiments("backbone_start")
    assert list(found) == ["imagenet", "places365", "random"], "the table's columns"
    for label, experiment in found.items():
        assert list(experiment.sequence) == ["cubs", "cars", "flowers", "wikiart", "sketches", "imagenet", "places365"]
        assert experiment.backbone.options()["name"] == "resnet50"
        for task in experiment.tasks:
            method = task.method_spec.kind
            assert method == ("identity" if task.name == label else "piggyback"), "a network's own set is not learned again"
            assert task.train.epochs == (20 if task.name in ("imagenet", "places365") else 30)
            assert task.data.kind == "class_folder"
    weights = {label: experiment.backbone.options()["weights"] for label, experiment in found.items()}
    assert weights.pop("random") is None
    assert weights == {label: f"DATA/weights/resnet50_{label}.safetensors" for label in ("imagenet", "places365")}
    assert {label: (e.backbone.mode, e.masks.norm) for label, e in found.items()} == {
        "imagenet": ("pretrained", "frozen"),
        "places365": ("pretrained", "frozen"),
        "random": ("random", "own"),
    }


def test_piggyback_as_the_special_case_of_affine_masks_is_that_of_the_method() -> None:
    sketch = _experiments("imagenet_to_sketch", "piggyback_special_frozen", "piggyback_special", "affine")
    decathlon = _experiments("decathlon", "piggyback_special", "affine")
    rows = {
        "table 5, row 2": (sketch["piggyback_special_frozen"], "frozen", sketch["affine"], "cubs"),
        "table 5, row 3": (sketch["piggyback_special"], "own", sketch["affine"], "cubs"),
        "tables 3 and 4, PB ours": (decathlon["piggyback_special"], "frozen", decathlon["affine"], "dtd"),
    }
    for row, (experiment, norm, affine, task) in rows.items():
        ours, theirs = (next(each for each in e.tasks if each.name == task) for e in (experiment, affine))
        assert ours.method == Affine.piggyback(), row
        assert experiment.masks.norm == norm, row
        assert ours.train == theirs.train, f"{row}: the protocol is the affine paper's"


def test_rows_of_imagenet_to_sketch_are_those_of_the_papers() -> None:
    rows = ("ksm", "ksm_soft", "piggyback_kernel")
    labels = (*rows, *(f"{row}_frozen" for row in rows), "piggyback", "affine_no_bias", "finetune", "finetune_sgd")
    found = _experiments("imagenet_to_sketch", *labels)
    bare = found["affine_no_bias"].tasks[0].method
    assert bare == Affine(learned=("k2",), start=(1.0, 0.0, 0.0, 0.0)), "row 5 of the affine paper starts at the network itself"
    for row in rows:
        own, frozen = found[row], found[f"{row}_frozen"]
        assert (own.masks.norm, frozen.masks.norm) == ("own", found["piggyback"].masks.norm)
        assert own.tasks[0].method == frozen.tasks[0].method
        assert own.tasks[0].train == frozen.tasks[0].train
    of = {label: found[label].tasks[0].train.optimiser for label in ("finetune", "finetune_sgd")}
    assert (of["finetune"].name, of["finetune"].lr) == ("adam", 1e-4), "SGD is the paper's for VGG alone"
    assert (of["finetune_sgd"].name, of["finetune_sgd"].lr, of["finetune_sgd"].momentum) == ("sgd", 1e-3, 0.9)


def test_scalings_of_the_scores_gradients_are_compared_where_they_can_act() -> None:
    labels = ("adam", "sgd_none_10", "sgd_average_1", "sgd_individual_1", "sgd_proportional_100")
    experiments = _experiments("score_scaling", *labels)
    assert len({backbone_fingerprint(experiment) for experiment in experiments.values()}) == 1, "all start from one backbone"
    found = {label: experiment.tasks[1] for label, experiment in experiments.items()}
    assert [(task.train.optimiser.mask, task.train.optimiser.mask_lr) for task in found.values()] == [
        ("adam", 1e-4), ("sgd", 10), ("sgd", 1), ("sgd", 1), ("sgd", 100)
    ]  # fmt: skip
    scalings = [task.method_spec.options.get("gradient_scaling") for task in found.values()]
    assert scalings == ["none", "none", "average", "individual", "none"]
    assert found["sgd_proportional_100"].method_spec.options["start"] == "proportional"


def test_the_decathlons_augmentations_are_cuts_or_whole_images_mirrored_or_not() -> None:
    found = _experiments("decathlon_augmentation")
    for label, square, flip in (
        ("crop", 72, False),
        ("crop_mirror", 72, True),
        ("resize", 64, False),
        ("resize_mirror", 64, True),
    ):
        assert len(found[label].tasks) == 9
        for task in found[label].tasks:
            assert (task.data.options["square"], task.data.options["middle"]) == (square, 64)
            assert (task.train.augmentation.crop, task.train.augmentation.flip) == (64, flip)


NEW = [f"superclass_{number}" for number in range(16, 21)]


@pytest.mark.slow
def test_impresslearns_bases_on_split_cifar() -> None:
    found = _experiments("cifar100_impresslearn")
    wanted = {
        "supsup": (None, 0, False),
        "heterogeneous_5": ("impressions", 5, False),
        "heterogeneous_10": ("impressions", 10, False),
        "heterogeneous": ("impressions", 15, False),
        "homogeneous_5": ("homogeneous", 5, False),
        "homogeneous_10": ("homogeneous", 10, False),
        "homogeneous": ("homogeneous", 15, False),
        "random_5": ("random", 5, False),
        "random_10": ("random", 10, False),
        "random": ("random", 15, False),
        "random_75": ("random", 75, False),
        "hybrid": ("impressions", 15, True),
        "hybrid_homogeneous": ("homogeneous", 15, True),
    }
    assert set(found) == {*wanted, "basis_gn"}
    unnamed = found["basis_gn"].tasks[-5:]
    assert [task.data.options["number"] for task in unnamed] == [1, 2, 3, 4, 5], "the first tasks again, without their label"
    assert {task.method for task in unnamed} == {ImpressLearn(basis="impressions", penalty_weight=5e-3, hybrid_density=0.1)}
    for label, (basis, count, hybrid) in wanted.items():
        experiment = found[label]
        first, new = experiment.tasks[:-5], experiment.tasks[-5:]
        assert [task.name for task in new] == NEW
        for task in new:
            assert task.data.options["number"] == int(task.name.rpartition("_")[2])
            if basis is None:
                assert task.method == SupSup(density=0.1, allocation="erdos_renyi")
                assert (task.train.optimiser.mask_lr, task.train.optimiser.mask_weight_decay) == (1e-3, 0)
            else:
                assert (task.train.optimiser.mask_lr, task.train.optimiser.mask_weight_decay) == (2e-2, 0.1)
                expected = ImpressLearn(basis=basis, penalty_weight=5e-3, hybrid=hybrid, hybrid_density=0.1)
                assert task.method == expected, label
        if basis is None or basis == "random":
            assert not first, "nothing else is trained"
            assert basis is None or experiment.bases[basis] == RandomBasis(
                count=count, density=0.1, seed=0, allocation="erdos_renyi"
            )
            continue
        made = experiment.bases[basis]
        assert isinstance(made, BasisOfTasks)
        assert [task.name for task in first] == list(made.tasks), label
        numbers = [task.data.options["number"] for task in first]
        assert numbers == (list(range(1, count + 1)) if basis == "impressions" else [1] * count), label
        assert len({experiment.seed_of(task.name) for task in first}) == count, "starts and orders differ"
        assert all(task.data.options["grouping"] == "random" for task in first)


def test_one_density_reaches_every_mask_of_split_cifar() -> None:
    overrides = ["experiment=cifar100_impresslearn", "data_root=DATA", "method.density=0.3"]
    experiment = read_experiment(plain_config(compose("cifar100", overrides)))
    random = experiment.bases["random"]
    assert isinstance(random, RandomBasis)
    assert experiment.method.options["density"] == random.density == 0.3
    assert {task.method_spec.options["hybrid_density"] for task in experiment.tasks if task.name in NEW} == {0.3}


def test_methods_of_one_seed_come_together_and_a_method_may_have_fewer_seeds(tmp_path: Path) -> None:
    methods = {
        "a": {"title": "A", "group": "mask", "overrides": ["method=piggyback"]},
        "b": {"title": "B", "group": "mask", "overrides": ["method=affine"], "seeds": [5]},
    }
    suite = _suite(methods=methods, seeds=[5, 6])
    jobs = method_jobs(suite, tmp_path, ["a", "b"], [5, 6], ["train.steps=3"])
    assert [(job.label, job.seed) for job in jobs] == [("a", 5), ("b", 5), ("a", 6)]
    assert jobs[1].overrides[-3:] == ["train.steps=3", "seed=5", f"out={tmp_path / 'b' / '5'}"]
    assert f"backbone_from={tmp_path / 'backbone' / '5'}" in jobs[1].overrides
    assert method_jobs(suite, tmp_path, ["a"], [], []) == []
    with pytest.raises(InputError, match="no method 'c'; it has a, b"):
        method_jobs(suite, tmp_path, ["c"], [5], [])
    with pytest.raises(InputError, match="nothing to run of seeds 6: b has 5"):
        method_jobs(suite, tmp_path, ["b"], [6], [])
    with pytest.raises(InputError, match="seed -1: expected whole numbers from 0"):
        method_jobs(suite, tmp_path, ["a"], [-1], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "piggybak", "--seeds", "0"], "no method 'piggybak'"),
        (["--methods", "sequential", "--seeds", "1"], "nothing to run of seeds 1: sequential has 0"),
        (["--parallel", "-1"], "--parallel -1: expected a whole number of at least 1"),
    ],
)
def test_a_command_that_cannot_be_carried_out_trains_no_backbone(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run_script("suite", "image_to_image", "data_root=somewhere", *arguments, "--out", str(tmp_path / "out"))
    assert done.code == 1
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_suite_runs_stores_and_sums_up_and_a_failure_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    suite, pipeline, store = _suite(), ROOT / "pipelines" / "image_to_image.py", tmp_path / "store"
    small = [
        "sequence=[shapes,landscape]",
        "compare.decoder_only=[]",
        "train.steps=2",
        "train.validation.every=2",
        "device.threads=1",
    ]
    small += ["train.validation.precise_bn_batches=2"]
    small += [f"tasks.{name}.data.count={{train: 4, val: 2, test: 2}}" for name in ("shapes", "landscape")]
    first = [s for s in small if not s.startswith("sequence")]
    (backbone,) = backbone_jobs(suite, tmp_path, [0], first)
    assert run_script("image_to_image", *backbone.overrides).code == 0
    jobs = method_jobs(suite, tmp_path, ["masks", "tuned"], [0], small)
    assert run_jobs(pipeline, jobs, parallel=2, store=store) == []
    describe(suite, store, tmp_path)
    summary = json.loads((store / "summary.json").read_text())
    assert set(summary["methods"]) == {"masks", "tuned"}
    for label in ("masks", "tuned"):
        results = json.loads((tmp_path / label / "0" / "results.json").read_text())
        for task in results["tasks"]:
            cell = summary["methods"][label][task["name"]]
            assert (cell["mean"], cell["std"], cell["seeds"], cell["bytes"]) == (task["value"], None, 1, task["bytes"])
    images = {"images/shapes.webp", "images/landscape.webp"}
    files = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert files == {"runs.jsonl", "summary.json"} | images, "weights are not kept"
    about, runs = read_store(store)
    assert (about.title, about.methods["tuned"].group) == ("Two methods", "reference")
    assert [(record.label, record.seed) for record in runs.values()] == [("masks", 0), ("tuned", 0)]
    sheet = read_sheet(store / "images" / "shapes.webp")
    assert sheet is not None
    assert list(sheet.methods) == ["masks", "tuned"]
    (tmp_path / "broken.py").write_text("import sys\nprint(sys.argv)\nsys.exit('error: no memory')")
    broken = method_jobs(suite, tmp_path / "other", ["tuned"], [0], small)
    assert run_jobs(tmp_path / "broken.py", broken, parallel=1, store=store) == broken
    assert "tuned, seed 0: failed: error: no memory" in caplog.text
    console = (broken[0].folder / "console.txt").read_text()
    assert str(broken[0].overrides[-1]) in console
    assert console.endswith("error: no memory\n")


@pytest.mark.parametrize("store", sorted((ROOT / "docs" / "results").glob("*/runs.jsonl")), ids=lambda path: path.parent.name)
def test_a_published_store_has_todays_titles(store: Path) -> None:
    """Else: `python pipelines/suite.py NAME --store docs/results/NAME --seeds`."""
    config = ROOT / "configs" / "suite" / f"{store.parent.name}.yaml"
    stored, _ = read_store(store.parent)
    if config.exists():
        assert stored == about(load_suite(config))
    assert not any(word in store.read_text().split("\n")[0] for word in ("own ends", 'its own"', 'alone"', "pictures"))


def test_a_damaged_store_is_refused_before_any_run(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "runs.jsonl").write_text('{"version": 2}\n')
    jobs = method_jobs(_suite(), tmp_path / "out", ["masks"], [0], [])
    with pytest.raises(InputError, match=r"runs\.jsonl, line 1 has the version 2"):
        run_jobs(ROOT / "pipelines" / "image_to_image.py", jobs, parallel=1, store=tmp_path / "store")
    assert not (tmp_path / "out").exists()


def test_a_group_that_reports_do_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"group.*'odd'.*comparison"):
        _suite(methods={"a": {"title": "A", "group": "odd", "overrides": []}})


def test_a_job_whose_folder_another_suite_works_in_fails_and_leaves_its_console_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (job,) = method_jobs(_suite(), tmp_path, ["masks"], [0], [])
    job.folder.mkdir(parents=True)
    (job.folder / "console.txt").write_text("the other's")
    with hold(job.folder):
        assert run_jobs(ROOT / "pipelines" / "image_to_image.py", [job], parallel=1, store=None) == [job]
    assert (job.folder / "console.txt").read_text() == "the other's"
    assert "masks, seed 0: failed:" in caplog.text
    assert "is in use by" in caplog.text


@pytest.mark.parametrize(
    ("console", "cause"),
    [
        ("", "no output"),
        ("step 1\nerror: the loss is NaN: lower train.optimiser.lr\n", "error: the loss is NaN: lower train.optimiser.lr"),
        ("Traceback\n  File x\nValueError: bad\n", "ValueError: bad"),
    ],
)
def test_a_failed_job_says_why(console: str, cause: str) -> None:
    assert _cause(console) == cause
