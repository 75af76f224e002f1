"""A network a task: what is trained in each, what stays frozen, and what is stored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_strategies import begun, changed, context, first, learned, probe, restored, snapshot, train, transformer

from img2img import InputError
from img2img.masks import MaskedNetwork
from img2img.research.strategies import DecoderOnly, FineTune, HeadOnly, PartlyTrained, Scratch
from img2img.research.strategies.separate import SeparateNetworks
from img2img.training.run import run
from img2img.training.strategy import Context, Strategy

ENCODER = {"encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"}
DECODER = {name.replace("encoder", "decoder") for name in ENCODER}
HEAD = {"head.weight", "head.bias"}
STATISTICS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
# Parameters of 4 bytes: a block's are convolution weights, its bias, and normalisation weight and bias.
ENCODER_BYTES = (108 + 4 + 4 + 4) * 4 + (4 + 4) * 4 + 8  # with running mean and variance and a 64-bit counter
DECODER_BYTES = (72 + 2 + 2 + 2) * 4 + (2 + 2) * 4 + 8
CONSTANTS = 2 * 3 * 4  # the images' mean and deviation


def _network(strategy: SeparateNetworks, name: str) -> PartlyTrained:
    return strategy._networks[name]


def _head_bytes(outputs: int) -> int:
    return (2 * outputs + outputs) * 4


# ---------------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    ("kind", "trainable", "moving"),
    [
        (FineTune, ENCODER | DECODER | HEAD, ("encoder", "decoder")),
        (DecoderOnly, DECODER | HEAD, ("decoder",)),
        (HeadOnly, HEAD, ()),
    ],
)
def test_what_is_trained_and_nothing_else_moves(kind: type[Any], trainable: set[str], moving: tuple[str, ...]) -> None:
    strategy = begun(kind())
    first(strategy)
    phases = strategy.learn("colour")
    phase = next(phases)
    model = _network(strategy, "colour").model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    before = snapshot(model)
    train(strategy, "colour", iter([phase]))
    statistics = {f"{child}.{name}" for child in moving for name in STATISTICS}
    assert changed(before, model) == trainable | statistics, "the statistics of what is fixed are fixed"
    assert next(phases, None) is None


def _starting(name: str, start_from: str) -> Context:
    """What a strategy works with, where a task starts from another."""
    plain = context()
    changed_task = replace(plain.task_data[name], config=replace(plain.task_data[name].config, start_from=start_from))
    tasks = tuple(changed_task.config if task.name == name else task for task in plain.experiment.tasks)
    experiment = plain.experiment.model_copy(update={"tasks": tasks})
    return replace(plain, experiment=experiment, task_data={**plain.task_data, name: changed_task})


def test_a_task_starts_from_the_network_of_another_with_a_head_of_its_own() -> None:
    strategy = begun(FineTune(), _starting("more", "colour"))
    first(strategy)
    learned(strategy, "colour")
    source = snapshot(_network(strategy, "colour").model)
    next(strategy.learn("more"))
    started = snapshot(_network(strategy, "more").model)
    same = {name for name in source if source[name].shape == started[name].shape and torch.equal(source[name], started[name])}
    assert {name for name in source if not name.startswith("head.")} <= same
    plain = snapshot(strategy.context.network.backbone)
    assert not torch.equal(plain["encoder.0.weight"], source["encoder.0.weight"]), "which has moved"
    assert HEAD - same, "a fresh head"
    other = begun(FineTune(), _starting("more", "colour"))  # learned on its own, as for a comparison
    next(other.learn("more"))
    own, backbone = snapshot(_network(other, "more").model), snapshot(other.context.network.backbone)
    assert torch.equal(own["encoder.0.weight"], backbone["encoder.0.weight"])


def test_a_start_that_a_method_cannot_have_is_refused() -> None:
    for strategy, start in ((FineTune(), "nearest"), (Scratch(), "colour")):
        given = _starting("more", start)
        with pytest.raises(InputError, match="start_from"):
            strategy.check(given.experiment, given.network)
    given = _starting("more", "colour")
    FineTune().check(given.experiment, given.network)


def test_parameters_beside_the_children_are_fixed_unless_all_is_trained() -> None:
    plain = context()
    plain.network.backbone.scale = torch.nn.Parameter(torch.ones(1))
    head = plain.head("colour")
    assert PartlyTrained(plain.network, head).model.get_parameter("scale").requires_grad
    assert not PartlyTrained(plain.network, head, ("decoder", "head")).model.get_parameter("scale").requires_grad


@pytest.mark.parametrize(
    ("kind", "evaluating"), [(FineTune, set()), (DecoderOnly, {"encoder"}), (HeadOnly, {"encoder", "decoder"})]
)
def test_what_is_fixed_stays_in_evaluation_mode(kind: type[Any], evaluating: set[str]) -> None:
    strategy = begun(kind())
    network = next(strategy.learn("colour")).module
    assert isinstance(network, PartlyTrained)
    for _ in range(2):
        network.train()
        for child in ("encoder", "decoder", "head"):
            modes = {module.training for module in network.model.get_submodule(child).modules()}
            assert modes == {child not in evaluating}
        network.eval()
        assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("kind", [FineTune, DecoderOnly, HeadOnly])
def test_every_task_starts_from_the_backbone_and_leaves_the_others_alone(kind: type[Any]) -> None:
    strategy = begun(kind())
    backbone = snapshot(strategy.context.network.backbone)
    first(strategy)
    learned(strategy, "colour")
    outputs = {name: probe(strategy, name) for name in ("classes", "colour")}
    phases = strategy.learn("more")
    next(phases)
    assert not changed(backbone, _without_head(_network(strategy, "more").model))
    learned(strategy, "more")
    assert all(torch.equal(probe(strategy, name), output) for name, output in outputs.items())
    assert not changed(backbone, strategy.context.network.backbone)


def _without_head(model: Any) -> torch.nn.Module:
    plain: torch.nn.Module = MaskedNetwork(model, head="head").backbone
    return plain


@pytest.mark.parametrize("kind", [FineTune, DecoderOnly, HeadOnly])
def test_the_first_task_runs_on_the_backbone_with_its_own_head(kind: type[Any]) -> None:
    strategy = begun(kind())
    head = strategy.context.head("classes")
    assert list(strategy.adopt("classes", head)) == []
    x = torch.rand(2, 3, 8, 8)
    expected = head(strategy.context.network.backbone.eval()(x))
    assert torch.equal(strategy.network("classes")(x), expected)


# ---------------------------------------------------------------------- from scratch


def test_scratch_starts_from_weights_of_its_own() -> None:
    strategy = begun(Scratch(), context(transformer()))
    assert Scratch.learns_first
    backbone = strategy.context.network.backbone
    starts = []
    for name in ("classes", "colour"):
        next(strategy.learn(name))
        starts.append(snapshot(_network(strategy, name).model))
    convolutions = [name for name in backbone.state_dict() if name.endswith("0.weight")]
    assert len(convolutions) == 5
    for name in convolutions:
        assert not torch.equal(starts[0][name], backbone.get_parameter(name))
        assert not torch.equal(starts[0][name], starts[1][name])
        assert starts[0][name].shape == backbone.get_parameter(name).shape
    assert all(p.requires_grad for p in _network(strategy, "colour").model.parameters())


def test_scratch_takes_no_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img.backbones import build_backbone
    from img2img.research.strategies import separate

    specs: list[dict[str, Any]] = []

    def build(spec: dict[str, Any]) -> Any:
        specs.append(spec)
        return build_backbone(spec)

    strategy = begun(Scratch(), context(transformer()))
    strategy.context.backbone.spec["weights"] = "imagenet"
    monkeypatch.setattr(separate, "build_backbone", build)
    next(strategy.learn("classes"))
    assert [spec["weights"] for spec in specs] == [None]


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize(
    ("kind", "own", "shared"),
    [
        (FineTune, ENCODER_BYTES + DECODER_BYTES + CONSTANTS, 0),
        (DecoderOnly, DECODER_BYTES, ENCODER_BYTES + CONSTANTS),  # each task has a decoder, the first too
        (HeadOnly, 0, ENCODER_BYTES + DECODER_BYTES + CONSTANTS),
    ],
)
def test_stored_bytes_by_hand(kind: type[Any], own: int, shared: int) -> None:
    strategy = begun(kind())
    first(strategy)
    learned(strategy, "colour")
    assert strategy.own_bytes("classes") == own + _head_bytes(3)
    assert strategy.own_bytes("colour") == own + _head_bytes(2)
    assert strategy.shared_bytes() == shared
    for name in ("classes", "colour"):
        written = strategy.own_tensors(name)
        assert sum(t.numel() * t.element_size() for t in written.values()) == strategy.own_bytes(name)


DECODER_SHARE = (72 + 2 + 2 + 2) / (108 + 72 + 3 * (4 + 2))


@pytest.mark.parametrize(
    ("kind", "mode", "networks"),
    [
        (FineTune, "first_task", 3),  # the first task's network is the backbone
        (FineTune, "pretrained", 4),  # the backbone, such as ImageNet's, is one besides
        (FineTune, "random", 3),
        (Scratch, "first_task", 3),
        (Scratch, "pretrained", 3),  # nothing of the backbone is used
        (DecoderOnly, "first_task", 1 + 2 * DECODER_SHARE),
        (DecoderOnly, "pretrained", 1 + 3 * DECODER_SHARE),  # one encoder, and the backbone's decoder and three
        (DecoderOnly, "random", 1 + 2 * DECODER_SHARE),
        (HeadOnly, "first_task", 1),
        (HeadOnly, "pretrained", 1),
    ],
)
def test_networks_are_counted_as_the_papers_do(kind: type[Any], mode: str, networks: float) -> None:
    strategy = begun(kind(), context(transformer() if kind is Scratch else None, mode=mode))
    for name in ("classes", "colour", "more"):
        adopted = name == "classes" and mode == "first_task" and not strategy.learns_first
        list(strategy.adopt(name, strategy.context.head(name)) if adopted else strategy.learn(name))
    assert strategy.relative_parameters() == pytest.approx(networks)


@pytest.mark.parametrize(("mode", "tasks", "printed"), [("pretrained", 5, 6), ("first_task", 10, 10)])
def test_individual_networks_of_the_affine_papers_tables(mode: str, tasks: int, printed: int) -> None:
    """Tables 1 and 2: ImageNet and five tasks. Table 3: the Decathlon, with ImageNet as the first of its ten tasks."""
    strategy = begun(FineTune(), context(mode=mode))
    strategy._networks = dict.fromkeys(map(str, range(tasks)))  # type: ignore[arg-type]
    assert strategy.relative_parameters() == printed


def test_a_bundles_backbone_is_a_network_besides(config: Callable[..., Any], tmp_path: Path) -> None:
    run(config(out=str(tmp_path / "base"), sequence=["disks"]))
    backbone = {"mode": "bundle", "weights": str(tmp_path / "base")}
    results = run(config(method={"name": "finetune"}, backbone=backbone, sequence=["colour", "edges"]))
    assert results["relative_parameters"] == 3


@pytest.mark.parametrize("kind", [FineTune, DecoderOnly, HeadOnly, Scratch])
def test_a_restored_learner_gives_the_same_outputs_and_learns_on_alike(kind: type[Any]) -> None:
    strategy: Strategy = begun(kind(), context(transformer()))
    (learned if kind is Scratch else first)(strategy, "classes")
    learned(strategy, "colour")
    again = restored(kind, strategy, ["classes", "colour"])
    assert all(torch.equal(probe(again, name), probe(strategy, name)) for name in ("classes", "colour"))
    assert not strategy.shared_tensors()
    for one in (strategy, again):
        torch.manual_seed(3)
        learned(one, "more")
    assert torch.equal(probe(again, "more"), probe(strategy, "more"))


@pytest.mark.parametrize("kind", [FineTune, DecoderOnly, HeadOnly])
def test_a_file_that_lacks_a_tensor_or_has_another_is_not_taken(kind: type[Any]) -> None:
    strategy = begun(kind())
    first(strategy)
    tensors = strategy.own_tensors("classes")
    for wrong in ({k: t for k, t in tensors.items() if k != "head.bias"}, tensors | {"head.scale": torch.ones(1)}):
        with pytest.raises(InputError, match=r"head\.(bias|scale)"):
            begun(kind(), strategy.context).restore({"classes": wrong}, {})
