"""A deployed copy: tasks switched in place."""

import pytest
import torch
from mask_zoo import LAYERS, METHODS, WithHead, evaluate, head, network, train

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.tensors import all_tensors, hash_tensors


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8)


@pytest.fixture
def net(x: torch.Tensor) -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head")
    for i, method in enumerate((masks.Piggyback(start="uniform"), masks.Piggyback(granularity="kernel"), masks.Identity())):
        net.add_task(f"t{i}", method, head=head(2 + i), norm="frozen" if i == 1 else "own")
        train(net, f"t{i}", x)
        net.freeze_task(f"t{i}")
    return net.eval()


def test_each_activated_task_gives_exactly_the_networks_outputs(net: MaskedNetwork, x: torch.Tensor) -> None:
    deployed = net.deploy()
    for task in ("t0", "t2", "t1", "t0", "t1"):
        deployed.activate(task)
        assert deployed.task == task
        assert torch.equal(deployed(x), evaluate(net, task, x))


def test_deactivating_brings_the_backbone_back_bit_for_bit(net: MaskedNetwork, x: torch.Tensor) -> None:
    deployed = net.deploy()
    bare = deployed(x)
    deployed.activate("t0")
    assert not torch.equal(deployed.module(x), bare)
    deployed.deactivate()
    assert hash_tensors(all_tensors(deployed.module).items()) == net.backbone_sha256
    assert torch.equal(deployed(x), bare)
    assert deployed.task is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fifty_switches_between_tasks_of_all_methods_leave_the_backbone_bit_for_bit(dtype: torch.dtype) -> None:
    """And each task, too; see `benchmarks/drift.py` for ten thousand."""
    backbone, x = LAYERS["transposed2d"]()
    net, x = network(backbone.to(dtype)), x.to(dtype)
    for task, method in METHODS.items():
        state = net.add_task(task, method())
        with torch.no_grad():
            for parameter in state.masks.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        net.freeze_task(task)
    deployed = net.deploy()
    expected = {task: evaluate(net, task, x) for task in METHODS}
    order = torch.randint(len(METHODS), (50,), generator=torch.Generator().manual_seed(0)).tolist()
    for cycle in (*range(len(METHODS)), *order):
        task = list(METHODS)[cycle]
        deployed.activate(task)
        assert torch.equal(deployed(x), expected[task]), task
        deployed.deactivate()
        for name, tensor in all_tensors(deployed.module).items():
            assert torch.equal(tensor, all_tensors(net.backbone)[name]), (task, name)
    assert net.hash_backbone() == net.backbone_sha256
    assert sum(not torch.equal(output, expected["identity"]) for output in expected.values()) == len(METHODS) - 1


def test_weights_stay_where_they_are_and_nothing_is_recompiled(net: MaskedNetwork, x: torch.Tensor) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    deployed = net.deploy()
    deployed.compile(backend=count, fullgraph=True)
    places = {n: t.data_ptr() for n, t in all_tensors(deployed.module).items()}
    for task in ("t0", "t1", "t2", "t0"):
        deployed.activate(task)
        assert torch.equal(deployed(x), evaluate(net, task, x))
    deployed.deactivate()
    assert {n: t.data_ptr() for n, t in all_tensors(deployed.module).items()} == places
    assert len(graphs) == 1


def test_a_deployed_copy_leaves_the_network_alone_and_is_never_in_training(net: MaskedNetwork, x: torch.Tensor) -> None:
    deployed = net.deploy()
    deployed.activate("t0")
    deployed.train()
    deployed(x + 5)
    assert not deployed.training
    assert not any(m.training for m in deployed.module.modules())
    assert net.hash_backbone() == net.backbone_sha256
    assert torch.equal(deployed(x), evaluate(net, "t0", x))


def test_a_task_in_training_is_not_deployed(net: MaskedNetwork) -> None:
    net.add_task("new", masks.Piggyback(), head=head())
    with pytest.raises(InputError, match="still in training"):
        net.deploy().activate("new")


def test_what_was_prepared_serves_after_the_task_is_gone(net: MaskedNetwork, x: torch.Tensor) -> None:
    expected = evaluate(net, "t0", x)
    deployed = net.deploy()
    deployed.prepare("t0")
    net.delete_task("t0")
    deployed.activate("t0")
    assert torch.equal(deployed(x), expected)
    deployed.discard("t0")
    with pytest.raises(InputError, match="no task 't0'"):
        deployed.activate("t0")


@pytest.mark.slow
@pytest.mark.parametrize("method", [masks.Piggyback(start="uniform"), masks.Affine(), masks.KSM()], ids=lambda m: m.name)
def test_the_default_compiler_gives_nearly_the_same_outputs(method: masks.MaskMethod, x: torch.Tensor) -> None:
    """Nearly: its kernels add up in another order. Needs a C++ compiler."""
    torch._dynamo.reset()
    net = MaskedNetwork(WithHead(), head="head")
    for task in "ab":
        net.add_task(task, method, head=head())
        train(net, task, x)
        net.freeze_task(task)
    expected = {task: evaluate(net, task, x) for task in "ab"}
    deployed = net.deploy()
    deployed.compile()
    net.compile()
    for task in "aba":
        deployed.activate(task)
        assert torch.allclose(deployed(x), expected[task], atol=1e-5)
        assert torch.allclose(evaluate(net, task, x), expected[task], atol=1e-5)
