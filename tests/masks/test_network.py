"""`MaskedNetwork`: the findings that all later work inherits, each executable."""

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from mask_zoo import METHODS, WithHead, evaluate, head, train
from torch import nn
from torch.utils.checkpoint import checkpoint

from img2img import InputError, MaskedNetwork, masks
from img2img.masks.methods.piggyback import below
from img2img.masks.tensors import all_tensors, hash_tensors


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8)


@pytest.fixture
def net() -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("a", masks.Piggyback(start="uniform"), head=head())
    net.add_task("b", masks.Piggyback(start="uniform"), head=head(5))
    return net


def test_the_backbone_given_is_left_as_it_was(x: torch.Tensor) -> None:
    backbone = WithHead().train()
    before, keys = hash_tensors(all_tensors(backbone).items()), list(backbone.state_dict())
    net = MaskedNetwork(backbone, head="head")
    net.add_task("a", masks.Piggyback(init=6e-3), head=head())
    train(net, "a", x)
    net.double()
    assert hash_tensors(all_tensors(backbone).items()) == before
    assert list(backbone.state_dict()) == keys
    assert backbone.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in backbone.parameters())


def test_concurrent_tasks_give_the_right_outputs_and_leave_the_backbone_whole(net: MaskedNetwork, x: torch.Tensor) -> None:
    net.eval()
    expected = {task: evaluate(net, task, x) for task in net.tasks()}
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work(task: str) -> None:
        start.wait()
        for step in range(60):
            # Cached and computed effective weights, in turn.
            with torch.set_grad_enabled(step % 2 == 0):
                if not torch.equal(net(x, task=task), expected[task]):
                    wrong.append(task)

    threads = [threading.Thread(target=work, args=(task,)) for task in ("a", "b", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert net.hash_backbone() == net.backbone_sha256


def test_every_buffer_of_a_training_pass_is_the_tasks_own(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = {n: b.clone() for n, b in net.backbone.named_buffers()}
    net.train()
    net(x, task="a")
    for name, buffer in net.backbone.named_buffers():
        assert torch.equal(buffer, before[name]), name
    own = net.state("a").norm_tensors()
    assert own["body.1.num_batches_tracked"].item() == 1
    assert not torch.equal(own["body.1.running_mean"], before["body.1.running_mean"])
    assert net.state("b").norm_tensors()["body.1.num_batches_tracked"].item() == 0


def test_a_buffer_that_is_no_normalisation_is_passed_and_what_is_written_to_it_discarded() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.layer(x) * self.calls

    net = MaskedNetwork(Counter())
    net.add_task("a", masks.Piggyback())
    x = torch.randn(1, 2)
    assert torch.equal(net(x, task="a"), net(x, task="a"))
    assert net.backbone.calls.item() == 0


def test_frozen_normalisation_runs_in_evaluation_mode_and_the_flags_come_back(x: torch.Tensor) -> None:
    net = MaskedNetwork(WithHead(), head="head")
    net.add_task("a", masks.Piggyback(), head=head(), norm="frozen")
    net.train()
    train_out = net(x, task="a")
    assert all(m.training for m in net.backbone.modules())
    assert torch.equal(train_out, net.eval()(x, task="a"))
    assert not list(net.state("a").norm.parameters())
    with pytest.raises(RuntimeError, match="expected input"):
        net.train()(x[:, :1], task="a")
    assert all(m.training for m in net.backbone.modules()), "the flags come back after an error too"


def test_the_backbone_is_whole_after_a_call_that_fails(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = evaluate(net, "b", x)
    with pytest.raises(RuntimeError):
        net(x[:, :1], task="a")
    assert net.hash_backbone() == net.backbone_sha256
    assert torch.equal(evaluate(net, "b", x), before)


def test_one_compiled_graph_serves_all_tasks(x: torch.Tensor) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    net = MaskedNetwork(WithHead(), head="head")
    for i in range(12):  # more tasks than torch.compile's limit on recompilations
        net.add_task(f"t{i}", masks.Piggyback(start="uniform"), head=head(1 + i % 3))
    eager = [evaluate(net, task, x) for task in net.tasks()]
    torch._dynamo.reset()
    net.compile(backend=count, fullgraph=True)
    assert all(torch.equal(evaluate(net, task, x), y) for task, y in zip(net.tasks(), eager, strict=True))
    assert len(graphs) == 1
    net.train()
    for task in net.tasks():
        net(x, task=task).sum().backward()
    assert len(graphs) == 2, "one more for training mode"
    assert net.hash_backbone() == net.backbone_sha256
    assert net.state("t3").norm_tensors()["body.1.num_batches_tracked"].item() == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_inside_the_backbone_is_refused(reentrant: bool, x: torch.Tensor) -> None:
    class Checkpointed(WithHead):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=reentrant))

    net = MaskedNetwork(Checkpointed(), head="head")
    net.add_task("a", masks.Piggyback(), head=head())
    with pytest.raises(RuntimeError, match="activation checkpointing is on"):
        net(x, task="a")
    with torch.no_grad():  # nothing runs again
        assert net(x, task="a").shape == (4, 2, 8, 8)
    # Outside a MaskedNetwork it works as ever.
    plain = Checkpointed()
    plain(x.requires_grad_()).sum().backward()
    assert plain.body[0].weight.grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_whole_call_may_be_checkpointed(reentrant: bool, net: MaskedNetwork, x: torch.Tensor) -> None:
    net.train()
    gradients = []
    for function in (net, lambda x, task: checkpoint(lambda x: net(x, task=task), x, use_reentrant=reentrant)):
        net.state("a").zero_grad()
        function(x.clone().requires_grad_(), task="a").square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in net.state("a").named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 4
    torch.testing.assert_close(*gradients)


def test_timm_style_checkpointing_is_refused_too() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=2)
    model.set_grad_checkpointing(True)
    net = MaskedNetwork(model)
    net.add_task("a", masks.Piggyback())
    with pytest.raises(RuntimeError, match="activation checkpointing is on"):
        net(torch.randn(2, 3, 32, 32), task="a")


def test_earlier_tasks_stay_bit_equal_through_later_training_deletion_and_loading(
    net: MaskedNetwork, x: torch.Tensor, tmp_path: object
) -> None:
    train(net, "a", x)
    net.freeze_task("a")
    before = evaluate(net, "a", x)
    train(net, "b", x)
    assert torch.equal(evaluate(net, "a", x), before)
    path = net.save_task("b", f"{tmp_path}/b.safetensors")
    net.delete_task("b")
    assert torch.equal(evaluate(net, "a", x), before)
    net.load_task(path, name="again")
    assert net.tasks() == ("a", "again")
    assert torch.equal(evaluate(net, "a", x), before)


def test_the_hash_is_the_same_on_any_layout_and_after_a_cast_to_double() -> None:
    backbone = WithHead()
    net = MaskedNetwork(backbone, head="head")
    assert net.hash_backbone() == net.backbone_sha256
    assert MaskedNetwork(backbone.to(memory_format=torch.channels_last), head="head").backbone_sha256 == net.backbone_sha256
    assert MaskedNetwork(backbone.double(), head="head").backbone_sha256 == net.backbone_sha256
    with torch.no_grad():
        backbone.body[0].weight[0, 0, 0, 0] += 1
    assert MaskedNetwork(backbone, head="head").backbone_sha256 != net.backbone_sha256


def test_the_hash_leaves_out_the_head_which_tasks_replace() -> None:
    backbone = WithHead()
    before = MaskedNetwork(backbone, head="head").backbone_sha256
    backbone.head = nn.Conv2d(8, 7, 3)
    assert MaskedNetwork(backbone, head="head").backbone_sha256 == before


def test_effective_weights_are_cached_in_evaluation_and_dropped_by_train_and_deepcopy(
    net: MaskedNetwork, x: torch.Tensor
) -> None:
    for task in "ab":
        net.freeze_task(task)  # scores that train may change without a trace
    evaluate(net, "a", x)
    one = net.cache_counts()["bytes"]
    assert one == sum(w.numel() * 4 for w in net.masked_weights().values())
    assert copy.deepcopy(net).cache_counts()["bytes"] == 0
    evaluate(net, "b", x)
    assert net.cache_counts()["bytes"] == 2 * one
    net.train()
    assert net.cache_counts()["bytes"] == 0


def test_the_cache_is_bounded_and_drops_the_least_recently_used(x: torch.Tensor) -> None:
    weights = sum(w.numel() * 4 for w in MaskedNetwork(WithHead(), head="head").masked_weights().values())
    net = MaskedNetwork(WithHead(), head="head", cache_bytes=2 * weights)
    for task in "abc":
        net.add_task(task, masks.Piggyback(start="uniform"), head=head())
        net.freeze_task(task)
    first = {task: evaluate(net, task, x) for task in "abc"}
    assert net.cache_counts()["bytes"] == 2 * weights
    assert net._cache.tasks() == ("b", "c")
    assert all(torch.equal(evaluate(net, task, x), first[task]) for task in "abca")
    assert net.cache_counts()["bytes"] == 2 * weights


def test_a_cached_weight_is_never_stale(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = evaluate(net, "a", x)
    with torch.no_grad():
        for p in net.state("a").masks.parameters():
            p.neg_()
    assert not torch.equal(evaluate(net, "a", x), before)


def test_what_inference_mode_cached_serves_a_frozen_task_with_grad(net: MaskedNetwork, x: torch.Tensor) -> None:
    net.freeze_task("a")
    net.eval()
    with torch.inference_mode():
        y = net(x, task="a")
    image = x.clone().requires_grad_()
    out = net(image, task="a")
    out.sum().backward()
    assert torch.equal(out, y)
    assert image.grad is not None


def test_a_deepcopy_is_independent(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = evaluate(net, "a", x)
    other = copy.deepcopy(net)
    train(other, "a", x)
    assert torch.equal(evaluate(net, "a", x), before)
    assert not torch.equal(evaluate(other, "a", x), before)


def test_a_merged_module_can_be_fine_tuned_and_is_no_part_of_the_network(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = evaluate(net, "a", x)
    plain = net.merge("a", requires_grad=True).train()
    torch.optim.SGD(plain.parameters(), 1.0).zero_grad()
    plain(x).square().sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
    torch.optim.SGD(plain.parameters(), 1.0).step()
    assert torch.equal(evaluate(net, "a", x), before)


def test_a_merged_module_requires_no_grad_and_takes_the_networks_kernels(x: torch.Tensor) -> None:
    """SMP's Segformer has linear layers over transposed tokens, of which PyTorch computes those that require grad otherwise."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = MaskedNetwork(smp.Segformer("mit_b0", encoder_weights=None), head="segmentation_head")
    net.add_task("a", masks.Piggyback(start="uniform"), head=nn.Conv2d(256, 3, 1))
    net.freeze_task("a")
    images = torch.rand(2, 3, 64, 64)
    expected, plain = evaluate(net, "a", images), net.merge("a")
    assert not any(p.requires_grad for p in plain.parameters())
    assert torch.equal(plain(images), expected)
    deployed = net.deploy()
    deployed.activate("a")
    assert torch.equal(deployed(images), expected)
    assert all(p.requires_grad for p in net.merge("a", requires_grad=True).parameters())


def test_a_task_module_has_the_tasks_parameters_alone(net: MaskedNetwork, x: torch.Tensor) -> None:
    module = net.task_module("b")
    assert {id(p) for p in module.parameters()} == {id(p) for p in net.state("b").parameters()}
    module.eval()
    assert not net.backbone.training
    with torch.no_grad():
        assert torch.equal(module(x), net(x, task="b"))


def test_under_ddp_only_the_active_tasks_module_is_wrapped(net: MaskedNetwork, x: torch.Tensor, tmp_path: object) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net.task_module("a"))
        optimiser = torch.optim.Adam(wrapped.parameters(), 1e-2)
        for _ in range(2):  # a second pass fails when a parameter of the first got no gradient
            optimiser.zero_grad()
            wrapped(x).square().mean().backward()
            optimiser.step()
        assert all(p.grad is not None for p in net.state("a").parameters())
    finally:
        torch.distributed.destroy_process_group()
    assert net.hash_backbone() == net.backbone_sha256


def test_a_head_that_is_not_the_last_operation_is_refused(x: torch.Tensor) -> None:
    class Upsampled(WithHead):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(self.head(self.body(x)), scale_factor=2)

    net = MaskedNetwork(Upsampled(), head="head")
    net.add_task("a", masks.Piggyback(), head=head())
    with pytest.raises(InputError, match="not the last operation"):
        net(x, task="a")


def test_errors_say_what_was_got_and_what_to_do(net: MaskedNetwork, x: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"no task 'c'; this network has a, b"):
        net(x, task="c")
    with pytest.raises(InputError, match="already"):
        net.add_task("a", masks.Piggyback(), head=head())
    with pytest.raises(InputError, match="letters, digits"):
        net.add_task("../a", masks.Piggyback(), head=head())
    with pytest.raises(InputError, match="reserve"):
        net.add_task("train", masks.Piggyback(), head=head())
    with pytest.raises(InputError, match="give `head` exactly when"):
        net.add_task("c", masks.Piggyback())
    with pytest.raises(InputError, match="no submodule"):
        MaskedNetwork(WithHead(), head="segmentation_head")
    with pytest.raises(InputError, match="'own', 'statistics', 'frozen'"):
        net.add_task("c", masks.Piggyback(), head=head(), norm="shared")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- another default dtype


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


BACKBONE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FOUND: dict[str, list[torch.Tensor]] = {}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_stores_the_same_whatever_the_default_type(method: str, default: torch.dtype) -> None:
    net = MaskedNetwork(copy.deepcopy(BACKBONE))
    net.add_basis("random", masks.Basis.random(net.layers(), count=3, density=0.4, seed=0))
    torch.manual_seed(0)
    net.add_task("a", METHODS[method]())
    net.add_task("b", METHODS[method]())
    train(net, "a", X)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    outputs = [evaluate(net, "a", X)]
    net.freeze_task("a")
    net.state("b").start_from(net.state("a"))
    outputs += [evaluate(net, "a", X), evaluate(net, "b", X), net.merge("a")(X)]
    expected = FOUND.setdefault(method, outputs)
    assert all(output.dtype == torch.float32 for output in outputs)
    assert all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))


def test_random_backbones_and_thresholds_are_the_same(default: torch.dtype) -> None:
    assert below(5e-3) == torch.nextafter(torch.tensor(5e-3, dtype=torch.float32), torch.tensor(0.0, dtype=torch.float32)).item()
    for kind in ("signed_constant", "kaiming_normal", "kaiming_uniform"):
        random = masks.randomise(copy.deepcopy(BACKBONE), kind=kind, seed=0)  # type: ignore[arg-type]
        other = FOUND.setdefault(kind, [p.detach().clone() for p in random.parameters()])
        assert all(torch.equal(p, q) for p, q in zip(random.parameters(), other, strict=True))
