"""The papers' protocols, asserted on what the configs make: rates by role and epoch, what trains, what stands still."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.backbones import build_backbone
from img2img.data.pad_crop import PadCrop
from img2img.masks import TaskModule
from img2img.research.impresslearn.options import read_study
from img2img.research.strategies import PackNet
from img2img.research.strategies.shared import SharedNetwork
from img2img.research.suites.runner import load_suite
from img2img.training.backbone import starting_backbone
from img2img.training.checkpoint import set_random_states
from img2img.training.compose import compose, plain_config
from img2img.training.config import Experiment, OptimiserOptions, TaskConfig, TrainOptions, ValidationOptions, read_experiment
from img2img.training.config_files import config_folder
from img2img.training.log import Callback, check_callbacks
from img2img.training.mask_strategy import groups_of
from img2img.training.optimiser import DenseAdam, Groups, all_groups, all_of, build_optimisers, check_one_optimiser, schedule
from img2img.training.strategy import TaskData
from img2img.validation import checked

DATA = "data_root=somewhere"
CONFIGS = config_folder()


def _experiment(*overrides: str, pipeline: str = "imagenet_to_sketch") -> Experiment:
    return read_experiment(plain_config(compose(pipeline, list(overrides))))


def _task(experiment: Experiment, name: str) -> TaskConfig:
    return next(task for task in experiment.tasks if task.name == name)


def _options(*overrides: str, task: str = "cubs", images: int = 3200) -> TrainOptions:
    return _task(_experiment("experiment=imagenet_to_sketch", DATA, *overrides), task).train.in_steps(images)


def _module(method: masks.MaskMethod | None = None, norm: str = "own") -> TaskModule:
    backbone = build_backbone({"kind": "vgg_small", "width": 0.0625, "hidden": [16], "out_channels": 3})
    network = MaskedNetwork(backbone, head="head")
    network.add_task("t", method or masks.Piggyback(), head=backbone.make_head(3), norm=norm)  # type: ignore[arg-type]
    return network.task_module("t")


def _groups(module: nn.Module) -> Groups:
    return groups_of(module) if isinstance(module, TaskModule) else all_of(module)


def _roles(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What is trained, by what it is."""
    groups = [list(group.parameters) for group in _groups(module)(OptimiserOptions())]
    names = ("scores", "norm", "head", "weights") if isinstance(module, TaskModule) else ("weights",)
    return dict(zip(names, groups, strict=True))


def _rates(module: nn.Module, options: TrainOptions, epoch: float, images: int = 3200) -> dict[str, tuple[str, float]]:
    """The optimiser and its rate by role, at the beginning of an epoch counted from 1."""
    step = int((epoch - 1) * images / options.batch_size)
    roles = {id(p): role for role, parameters in _roles(module).items() for p in parameters}
    found = {}
    for optimiser in build_optimisers(_groups(module)(options.optimiser), options.optimiser):
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                rate = round(group["lr"] * schedule(step, options), 12)
                found.setdefault(roles[id(parameter)], (type(optimiser).__name__.removeprefix("Dense"), rate))
    return found


def test_piggyback_has_adam_at_1e_4_for_all_and_a_tenth_after_epoch_15_of_30() -> None:
    options = _options()
    assert (options.steps, options.batch_size, options.augmentation.crop) == (30 * 100, 32, 224)
    everything = dict.fromkeys(("scores", "norm", "head"), ("Adam", 1e-4))
    assert _rates(_module(), options, 1) == everything
    assert _rates(_module(), options, 15.99) == everything
    assert _rates(_module(), options, 16) == dict.fromkeys(("scores", "norm", "head"), ("Adam", 1e-5))
    assert _rates(_module(), options, 30.9) == dict.fromkeys(("scores", "norm", "head"), ("Adam", 1e-5))


def test_the_affine_paper_has_sgd_for_the_classifier_alone() -> None:
    options = _options("protocol=affine")
    assert options.optimiser.momentum == 0.9
    expected = {"scores": ("Adam", 1e-4), "norm": ("Adam", 1e-4), "head": ("SGD", 1e-3)}
    assert _rates(_module(masks.Affine()), options, 1) == expected
    assert _rates(_module(masks.Affine()), options, 16) == {role: (kind, rate / 10) for role, (kind, rate) in expected.items()}
    module = _module(masks.Affine())
    scales = {id(p) for mask in module.state.masks.children() for name, p in mask.named_parameters() if name != "score"}
    assert scales
    assert scales <= {id(p) for p in _roles(module)["scores"]}, "k0 to k3 are trained as the masks are"


def test_the_decathlon_has_60_epochs_decayed_after_45_and_no_mirror_for_signs() -> None:
    experiment = _experiment("experiment=decathlon", DATA, pipeline="decathlon")
    options = _task(experiment, "aircraft").train.in_steps(3200)
    assert options.steps == 60 * 100
    assert _rates(_module(), options, 45.99)["scores"] == ("Adam", 1e-4)
    assert _rates(_module(), options, 46) == {"scores": ("Adam", 1e-5), "norm": ("Adam", 1e-5), "head": ("SGD", 1e-4)}
    mirrored = {task.name: task.train.augmentation.flip for task in experiment.tasks}
    assert [name for name, flip in mirrored.items() if not flip] == ["dtd", "gtsrb", "omniglot", "svhn"]
    assert (options.augmentation.crop, options.augmentation.zoom) == (64, (1, 1))
    for task in experiment.tasks:
        data = task.data.options
        assert (data["square"], data["middle"], data.get("resize")) == (72, 64, None), "72 x 72, whatever the proportions"


def test_the_decathlons_final_training_takes_train_and_val_and_keeps_the_last_step() -> None:
    experiment = _experiment("experiment=decathlon_final", DATA, pipeline="decathlon")
    for task in experiment.tasks:
        data = task.data.options
        assert data["parts"]["train"] == {"part": "train+val"}
        assert data["dataset"] == task.name
        assert task.train.validation.keep == "last"


def test_the_twenty_superclasses_have_30_epochs_of_adam_and_the_first_trains_the_backbone_as_cpg_does() -> None:
    experiment = _experiment("experiment=cifar100_twenty", DATA, "method=ksm", pipeline="cifar100")
    assert list(experiment.sequence) == [f"superclass_{i}" for i in range(1, 21)]
    assert [task.data.options["number"] for task in experiment.tasks] == list(range(1, 21))
    assert experiment.first_trains_backbone
    options = _task(experiment, "superclass_7").train.in_steps(2250)
    assert (options.epochs, options.steps) == (0, -(-30 * 2250 // 32))
    assert _rates(_module(masks.KSM()), options, 1, 2250)["scores"] == ("Adam", 1e-4)
    assert _rates(_module(masks.KSM()), options, 16.1, 2250)["scores"] == ("Adam", 1e-5)
    first = _task(experiment, "superclass_1").train
    cpg = _task(_experiment("experiment=cifar100_twenty", "protocol=cifar_cpg", DATA, pipeline="cifar100"), "superclass_2").train
    for options in (first, cpg):
        chosen = options.optimiser
        assert (options.epochs, options.batch_size, options.schedule.decay_at) == (100, 32, (0.5, 0.8))
        assert (chosen.name, chosen.lr, chosen.momentum, chosen.nesterov, chosen.weight_decay) == ("sgd", 1e-2, 0.9, True, 4e-5)
        assert options.validation.keep == "last"


def test_cpgs_scripts_have_100_epochs_of_nesterov_and_adam_for_the_mask_alone() -> None:
    given = ("experiment=cifar100_twenty", "protocol=cifar_cpg", DATA)
    options = _task(_experiment(*given, "method=ksm", pipeline="cifar100"), "superclass_7").train.in_steps(2250)
    assert options.steps == -(-100 * 2250 // 32)
    expected = {"scores": ("Adam", 5e-4), "norm": ("SGD", 1e-2), "head": ("SGD", 1e-2)}
    for epoch, factor in ((1, 1.0), (50.9, 1.0), (51.1, 0.1), (80.9, 0.1), (81.1, 0.01)):
        at = {role: (kind, pytest.approx(rate * factor)) for role, (kind, rate) in expected.items()}
        assert _rates(_module(masks.KSM()), options, epoch, 2250) == at
    optimisers = build_optimisers(_groups(_module())(options.optimiser), options.optimiser)
    assert [group["nesterov"] for group in all_groups(optimisers) if "nesterov" in group] == [True, True]
    pruned = load_suite(CONFIGS / "suite" / "cifar100_cpg.yaml").methods["packnet"].overrides
    experiment = _experiment(*given, *pruned, pipeline="cifar100")
    options, strategy = _task(experiment, "superclass_7").train.in_steps(3200), experiment.strategy.build()
    assert isinstance(strategy, PackNet)
    retraining = round(options.steps * strategy.retrain)
    assert (options.steps - retraining, retraining) == (100 * 100, 30 * 100)
    assert (strategy.first, strategy.later, strategy.retrain_lr) == (0.6, 0.6, 0.1)
    assert [round(share * 30) for share in strategy.retrain_decay_at] == [25]


def test_individual_networks_have_sgd_with_momentum_at_1e_3() -> None:
    options = _options("protocol=individual", "method=finetune")
    network = build_backbone({"kind": "lenet", "hidden": [4], "out_channels": 2})
    assert _rates(network, options, 1) == {"weights": ("SGD", 1e-3)}
    assert _rates(network, options, 16) == {"weights": ("SGD", 1e-4)}


def test_packnet_prunes_half_then_three_quarters_and_retrains_15_epochs_at_1e_4() -> None:
    experiment = _experiment("experiment=imagenet_to_sketch", DATA, "protocol=packnet", "method=packnet")
    options = _task(experiment, "cubs").train.in_steps(3200)
    strategy = experiment.strategy.build()
    assert isinstance(strategy, PackNet)
    assert (strategy.first, strategy.later) == (0.5, 0.75)
    retraining = round(options.steps * strategy.retrain)
    assert (options.steps - retraining, retraining) == (30 * 100, 15 * 100)
    assert (options.optimiser.lr, options.optimiser.lr * strategy.retrain_lr) == (1e-3, pytest.approx(1e-4))
    assert (options.optimiser.name, options.schedule.decay_at) == ("sgd", (0.5,))


def test_fixed_normalisation_stands_still_in_its_statistics_too() -> None:
    for norm, moves in (("frozen", False), ("own", True)):
        module = _module(norm=norm)
        assert bool(_roles(module)["norm"]) is moves
        module.train()
        before = {name: t.clone() for name, t in module.network.backbone.named_buffers()}
        own = {name: t.clone() for name, t in module.state.norm_tensors().items()}
        module(torch.rand(4, 3, 32, 32)).sum().backward()
        assert all(torch.equal(t, before[name]) for name, t in module.network.backbone.named_buffers()), (
            "the shared ones never move"
        )
        changed = [name for name, t in module.state.norm_tensors().items() if not torch.equal(t, own[name])]
        assert bool(changed) is moves
        module.eval()
        once = module(torch.full((1, 3, 32, 32), 0.5))
        assert torch.isfinite(once).all()


def test_scores_and_norm_state_never_decay_and_weights_do() -> None:
    options = OptimiserOptions(weight_decay=0.1, name="sgd")
    decays = {}
    module = _module()
    roles = {id(p): role for role, parameters in _roles(module).items() for p in parameters}
    for group in all_groups(build_optimisers(_groups(module)(options), options)):
        decays |= {roles[id(p)]: group["weight_decay"] for p in group["params"]}
    assert decays == {"scores": 0.0, "norm": 0.0, "head": 0.1}
    plain = build_backbone({"kind": "lenet", "hidden": [4], "out_channels": 2})
    assert {group["weight_decay"] for group in all_groups(build_optimisers(_groups(plain)(options), options))} == {0.1}


def test_an_encoder_can_have_a_rate_of_its_own() -> None:
    network = build_backbone({"kind": "smp", "encoder": "resnet18", "decoder_channels": [16, 8, 8, 8, 8], "out_channels": 2})
    options = OptimiserOptions(lr=1e-3, encoder_lr=1e-4, weight_decay=0.1)
    assert [group.lr for group in all_of(network)(OptimiserOptions(lr=1e-3))] == [1e-3]
    shared = SharedNetwork(MaskedNetwork(network, head="head"), "shared")
    for module, encoder in ((network, network.encoder), (shared, shared.trunk.encoder)):
        rest, own = all_of(module)(options)
        assert [(group.lr, group.weight_decay, group.optimiser) for group in (rest, own)] == [
            (1e-3, 0.1, "adam"),
            (1e-4, 0.1, "adam"),
        ]
        assert {id(p) for p in own.parameters} == {id(p) for p in encoder.parameters()}
        assert len(rest.parameters) + len(own.parameters) == len(list(module.parameters()))
    assert TrainOptions(optimiser=options).at_rate(0.1).optimiser.encoder_lr == pytest.approx(1e-5)
    with pytest.raises(InputError, match=r"encoder_lr=0.0001: expected a network with an encoder and a decoder.*leave it out"):
        all_of(nn.Linear(2, 2))(options)


@pytest.mark.parametrize(
    ("role", "expected"), [("scores", ("Adam", 0.25, 0.01)), ("weight", ("SGD", 0.5, 0.1))], ids=["scores", "weight"]
)
def test_a_masks_role_says_how_its_parameters_are_trained(role: str, expected: tuple[Any, ...], monkeypatch: Any) -> None:
    module = _module()
    kinds = {type(mask) for mask in module.state.masks.children()}
    for kind in kinds:
        monkeypatch.setattr(kind, "trained_as", role)  # as a new method's masks would have it
    options = OptimiserOptions(name="sgd", lr=0.5, weight_decay=0.1, mask_lr=0.25, mask_weight_decay=0.01)
    scores = {id(p) for mask in module.state.masks.children() for p in mask.parameters()}
    found = {
        (type(optimiser).__name__.removeprefix("Dense"), group["lr"], group["weight_decay"])
        for optimiser in build_optimisers(groups_of(module)(options), options)
        for group in optimiser.param_groups
        if {id(p) for p in group["params"]} & scores
    }
    assert found == {expected}


def test_the_scores_optimiser_can_be_chosen_and_then_the_scaling_of_gradients_matters() -> None:
    moved: dict[str, torch.Tensor] = {}
    for scaling in ("none", "average"):
        torch.manual_seed(0)
        network = MaskedNetwork(nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 1)))
        with torch.no_grad():
            network.backbone[0].weight.mul_(1e-2)  # type: ignore[union-attr, operator, index]
        network = MaskedNetwork(network.backbone)
        network.add_task("t", masks.Piggyback(gradient_scaling=scaling))  # type: ignore[arg-type]
        module = network.task_module("t")
        options = OptimiserOptions(mask="sgd", mask_lr=1.0, momentum=0)
        optimisers = build_optimisers(groups_of(module)(options), options)
        assert {type(o) for o in optimisers if o.param_groups[0]["lr"] == 1.0} == {torch.optim.SGD}
        score = dict(module.state.named_masks())["0.weight"].score
        assert isinstance(score, nn.Parameter)
        before = score.detach().clone()
        module(torch.ones(2, 6)).sum().backward()
        for optimiser in optimisers:
            optimiser.step()
        moved[scaling] = before - score.detach()
    size = network.masked_weights()["0.weight"].abs().mean()
    torch.testing.assert_close(moved["average"], moved["none"] / size, rtol=1e-4, atol=0)


def test_several_optimisers_are_refused_where_the_first_ones_step_may_change_the_scale_of_the_others_gradients() -> None:
    network = nn.Linear(3, 2)
    optimisers = [torch.optim.Adam([network.weight]), torch.optim.SGD([network.bias], lr=1.0)]
    scaled = Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu")))
    check_one_optimiser(optimisers, Fabric(accelerator="cpu", precision="bf16-mixed"))
    check_one_optimiser(optimisers[:1], scaled)
    with pytest.raises(InputError, match=r"16-mixed with 2 optimisers.*bf16-mixed"):
        check_one_optimiser(optimisers, scaled)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.Adam), ("sgd", torch.optim.SGD), ("rmsprop", torch.optim.RMSprop)],
)
def test_an_optimiser_is_the_one_that_is_named(name: str, kind: type) -> None:
    network = nn.Linear(3, 2)
    options = OptimiserOptions(name=name, lr=1e-3)  # type: ignore[arg-type]
    (optimiser,) = build_optimisers(all_of(network)(options), options)
    assert isinstance(optimiser, kind)
    before = network.weight.detach().clone()
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    moved = (before - network.weight.detach()).numpy()
    # a first step on gradients of one: the rate itself, which RMSprop divides by sqrt(1 - alpha)
    assert np.allclose(moved, {"rmsprop": 1e-2}.get(name, 1e-3), rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1, "optimiser": {"name": "lion"}}, "train.optimiser got name: 'lion'"),
        ({"steps": 1, "schedule": {"name": "poly"}}, "train.schedule got name: 'poly'"),
        ({"steps": 1, "validation": {"keep": "first"}}, "train.validation got keep: 'first'"),
        ({"steps": 1, "schedule": {"decay_at": (1.5,)}}, "decay_at"),
        ({"steps": 1, "optimiser": {"norm_lr": 0.0}}, "norm_lr: .*more than 0"),
        ({"steps": 1, "optimiser": {"weight_decay": -1.0}}, "weight_decay"),
        ({"epochs": 1.0, "steps": 1}, "expected one of them above 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(TrainOptions, options, what="train")


def test_epochs_become_steps_that_cover_them() -> None:
    options = TrainOptions(steps=0, epochs=1.5, batch_size=4, validation=ValidationOptions(epochs=0.5))
    assert options.in_steps(10).steps == 4  # 15 images in batches of 4
    assert options.in_steps(10).validation.every == 1
    assert TrainOptions(steps=7).in_steps(10) == TrainOptions(steps=7)


NOTHING = {"name": "x", "out": "x", "backbone": {}, "method": {}, "sequence": ["t"]}


def test_options_that_are_off_do_not_change_what_a_training_depends_on() -> None:
    plain = TrainOptions(steps=1).plain()
    assert not {"mask", "nesterov", "mask_weight_decay", "encoder_lr"} & plain["optimiser"].keys()
    assert not {"cutout", "rotate"} & plain["augmentation"].keys()
    on = (
        TrainOptions(steps=1)
        .changed(optimiser={"nesterov": True, "mask_weight_decay": 0.1}, augmentation={"cutout": 8, "rotate": True})
        .plain()
    )
    assert (on["optimiser"]["nesterov"], on["optimiser"]["mask_weight_decay"], on["augmentation"]["cutout"]) == (True, 0.1, 8)
    assert on["augmentation"]["rotate"] is True


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_family_needs_a_count(count: Any) -> None:
    with pytest.raises(InputError, match=r"tasks\.t got count"):
        read_experiment({**NOTHING, "tasks": {"t": {"count": count}}})


def test_a_member_of_a_family_can_differ_and_be_asked_for() -> None:
    experiment = _experiment(
        "experiment=cifar100_made",
        "sequence=[patterns_4,patterns_2,patterns_1]",
        "+tasks.patterns_2.train.epochs=3",
        "+tasks.patterns_2.data.size=48",
        pipeline="cifar100",
    )
    assert list(experiment.sequence) == ["patterns_4", "patterns_2", "patterns_1"]
    assert [task.data.options["number"] for task in experiment.tasks] == [4, 2, 1]
    assert [task.data.options["size"] for task in experiment.tasks] == [32, 48, 32]
    assert [task.train.epochs for task in experiment.tasks] == [25, 3, 15], "the first trains the backbone"


@pytest.mark.parametrize(
    ("pipeline", "name", "family", "rates", "batch"),
    [
        ("cifar100", "cifar100_impresslearn", "superclass", (1e-3, 2e-2), 64),
        ("imagenet_to_sketch", "split_imagenet", "split", (2.5e-3, 2.5e-3), 96),
    ],
)
def test_impressions_of_residual_networks_are_learned_as_table_3_has_it(
    pipeline: str, name: str, family: str, rates: tuple[float, float], batch: int
) -> None:
    experiment = _experiment(f"experiment={name}", DATA, pipeline=pipeline)
    for task, rate, decay in zip((f"{family}_1", experiment.sequence[-1]), rates, (0.0, 0.1), strict=True):
        options, method = _task(experiment, task).train.in_steps(3200), _task(experiment, task).method
        assert options.batch_size == batch
        assert _rates(_module(masks.SupSup()), options, 1)["scores"] == ("Adam", rate)
        groups = groups_of(_module(masks.SupSup()))(options.optimiser)
        assert groups[0].weight_decay == decay, "the table's decay is of the coefficients"
        assert getattr(method, "penalty_weight", 5e-3) == 5e-3
    assert isinstance(method, masks.ImpressLearn)
    if name == "cifar100_impresslearn":
        network = starting_backbone(experiment, 5)
        weights = {n: p for n, p in network.named_parameters() if p.ndim > 1}
        assert len(weights) - 3 == 18, "21 layers with the three shortcuts"
        assert sum(p.numel() for p in weights.values()) == pytest.approx(6.2e6, rel=0.02), "table 2"
        assert all(len(p.abs().unique()) == 1 for p in weights.values()), "one size a layer, the sign by chance"
        assert _task(experiment, "superclass_1").method == masks.SupSup(allocation="erdos_renyi")
        assert experiment.bases["random"].model_dump()["allocation"] == "erdos_renyi"


def test_impressions_of_lenet_are_learned_as_table_3_has_it() -> None:
    for study in ("permuted_mnist", "rotated_mnist"):
        train = read_study(plain_config(compose("impresslearn", [f"study={study}", DATA]))).train
        assert (train.lr, train.batch_size, train.penalty_weight) == (2e-3, 128, 0)


# ---------------------------------------------------------------------- the optimisers of a training against PyTorch's own

SHAPES = [(24, 17, 3, 3), (7, 1, 3, 3), (5, 3, 1, 1), (4, 6, 5), (3, 2, 2, 3, 3), (9,), ()]


def _parameters(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    tensors = [torch.randn(s).contiguous(memory_format=formats.get(len(s), torch.contiguous_format)) for s in SHAPES]
    tensors[3] = tensors[3].transpose(0, 2)  # another order, as one may be given
    return [nn.Parameter(tensor) for tensor in tensors]


def _steps(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int = 1, *, other: Any = None) -> None:
    torch.manual_seed(seed)
    for _ in range(3):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape)
            parameter.grad = gradient if other else torch.empty_like(parameter).copy_(gradient)
        optimiser.step()


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_parameters_of_every_memory_format_end_as_by_pytorchs(name: str, reference: type[torch.optim.Adam]) -> None:
    ours, theirs = _parameters(), _parameters()
    shapes, strides = [p.shape for p in ours], [p.stride() for p in ours]
    options = OptimiserOptions(name=name, lr=1e-2, weight_decay=0.1)  # type: ignore[arg-type]
    _steps(build_optimisers(all_of(nn.ParameterList(ours))(options), options)[0], ours)
    _steps(reference(theirs, 1e-2, weight_decay=0.1, fused=True), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ([p.shape for p in ours], [p.stride() for p in ours]) == (shapes, strides)
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in ours)


def test_a_gradient_of_another_memory_format_is_the_same_gradient() -> None:
    """PyTorch's fused kernel takes its memory as it lies."""
    ours, expected = _parameters(), [nn.Parameter(p.detach().contiguous()) for p in _parameters()]
    _steps(DenseAdam(ours, 1e-2, fused=True), ours, other=True)
    _steps(torch.optim.Adam(expected, 1e-2), expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_state_goes_on_bit_equal_and_a_closure_sees_the_parameters_as_they_are() -> None:
    whole, first = _parameters(), _parameters()
    optimiser = DenseAdam(whole, 1e-2, fused=True)
    _steps(optimiser, whole)
    _steps(optimiser, whole, seed=2)
    before = torch.optim.Adam(first, 1e-2, fused=True)  # whose state is of the same form
    _steps(before, first)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    after = DenseAdam(second, 1e-2, fused=True)
    after.load_state_dict(before.state_dict())
    moments = [after.state[p]["exp_avg"] for p in second]
    assert [(m.shape, m.stride()) for m in moments] == [(p.shape, p.stride()) for p in second]
    _steps(after, second, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))

    def closure() -> torch.Tensor:
        assert [p.shape for p in second] == [p.shape for p in first]
        return torch.tensor(5.0)

    assert after.step(closure) == 5


def test_pytorchs_kernel_is_given_contiguous_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It copies others, twice each."""
    parameters, original, given = _parameters(), torch._fused_adam_, []

    def kernel(*lists: Any, **options: Any) -> None:
        given.extend(tensor for tensors in lists for tensor in tensors)
        original(*lists, **options)

    monkeypatch.setattr(torch, "_fused_adam_", kernel)
    _steps(DenseAdam(parameters, 1e-2, fused=True, amsgrad=True), parameters)
    assert not all(p.is_contiguous() for p in parameters)
    assert len(given) > 3 * 5 * len(parameters)
    assert all(tensor.is_contiguous() for tensor in given)


def test_a_gradient_that_lies_as_its_parameter_does_is_not_copied() -> None:
    parameter = nn.Parameter(torch.randn(8, 5, 1, 1))
    gradient = torch.randn(40).as_strided((8, 5, 1, 1), (5, 1, 5, 5))
    assert gradient.stride() != parameter.stride(), "along axes of length 1 alone"
    parameter.grad = gradient
    optimiser = DenseAdam([parameter], 1e-2, fused=True)
    optimiser.step()
    assert parameter.grad is gradient


def test_images_with_a_category_are_turned_one_by_one_and_never_with_a_border() -> None:
    def augment(**given: Any) -> Any:
        options = TrainOptions().changed(augmentation={"crop": 32, "zoom": (1.0, 1.0), **given})
        train = SimpleNamespace(categories=np.zeros(3, np.int64))
        of = SimpleNamespace(
            name="cells", options=options, task=SimpleNamespace(original_pixels=False), parts=SimpleNamespace(train=train)
        )
        return TaskData._augment(of)  # type: ignore[arg-type]

    assert isinstance(augment(), PadCrop)
    assert augment(rotate=True).rotate is True
    with pytest.raises(InputError, match=r"tasks.cells has train.augmentation.pad=4 and rotate: true: expected one of them"):
        augment(pad=4, rotate=True)
    with pytest.raises(InputError, match=r"cutout=8: expected 0 unless .*rotate: false"):
        augment(cutout=8, rotate=True)


def test_two_callbacks_of_one_class_are_refused() -> None:
    class Another(Callback):
        pass

    check_callbacks([Callback(), Another()])
    with pytest.raises(InputError, match=r"several callbacks of the class Another: expected one of each"):
        check_callbacks([Callback(), Another(), Another()])


def test_a_training_shorter_than_the_warmup_reaches_its_rate() -> None:
    for name in ("cosine", "step"):
        options = TrainOptions.model_validate({"steps": 10, "schedule": {"name": name}})
        assert options.schedule.warmup > options.steps
        assert max(schedule(step, options) for step in range(10)) > 0.6
    assert schedule(0, TrainOptions.model_validate({"steps": 400, "schedule": {"name": "step"}})) == 1 / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optimiser": {"nesterov": True}}, "expected sgd for one"), ({"average": {"of": "all"}}, "averages nothing")],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions.model_validate(options)


def test_random_states_of_more_gpus_than_there_are_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    put = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append((device, state)))
    set_random_states({"cpu": torch.get_rng_state(), "cuda": ["first", "second"]})
    assert put == [(0, "first")]
