"""Ctrl-C anywhere in a call leaves the network as it was: there is nothing shared that would have to be undone."""

import copy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from mask_zoo import WithHead, evaluate, head, train
from torch import nn

from img2img import MaskedNetwork, masks
from img2img.masks import activation_checkpointing
from img2img.masks.task_inference import by_gradient, by_norm_statistics

FILES = (str(Path(masks.__file__).parent), str(Path(nn.__file__).parent), copy.__file__)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _grad_mode() -> Iterator[None]:
    """An interrupt within PyTorch's own `no_grad` may leave grad off."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture
def net() -> MaskedNetwork:
    """Two frozen tasks with states of their own, and one in training."""
    net = MaskedNetwork(WithHead(), head="head")
    for task, norm in (("a", "own"), ("b", "frozen")):
        net.add_task(task, masks.Piggyback(start="uniform"), head=head(), norm=norm)  # type: ignore[arg-type]
        train(net, task, X)
        net.freeze_task(task)
    net.add_task("c", masks.Affine(), head=head())
    return net.eval()


@contextmanager
def interrupt_at(n: int, files: tuple[str, ...] = FILES) -> Iterator[list[int]]:
    """A KeyboardInterrupt at the n-th line that runs of `files`: the mask core, `torch.nn` and `copy`; counts them."""
    seen = [0]

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(files):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] == n:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def everywhere(
    act: Callable[[], object], check: Callable[[], None], *, fresh: Callable[[], None] = lambda: None, points: int = 150
) -> None:
    """Interrupt `act` at each of its lines in turn, or at so many of them evenly, and `check` after each."""
    fresh()
    with interrupt_at(-1) as seen:
        act()
    assert seen[0] > 20
    raised, tried = 0, range(1, seen[0] + 1, -(-seen[0] // points))
    for n in tried:
        fresh()
        try:
            with interrupt_at(n):
                act()
        except KeyboardInterrupt:
            raised += 1
        check()
    assert raised > 0.7 * len(tried)  # a first pass may have had more to do


def flags(net: MaskedNetwork) -> dict[str, bool]:
    return {name: module.training for name, module in net.named_modules()}


@pytest.mark.parametrize("task", ["a", "b", "c"])
@pytest.mark.parametrize("training", [False, True])
def test_an_interrupt_at_any_line_of_a_call_leaves_the_backbone_the_flags_and_all_later_results(
    net: MaskedNetwork, task: str, training: bool
) -> None:
    own = dict(net.backbone.named_parameters())
    expected = {name: evaluate(net, name, X) for name in "abc"}
    net.train(training)
    before, where = flags(net), {name: tensor.data_ptr() for name, tensor in own.items()}

    def act() -> None:
        with torch.set_grad_enabled(training):
            net(X, task=task)

    def check() -> None:
        assert net.hash_backbone() == net.backbone_sha256
        assert all(tensor is own[name] for name, tensor in net.backbone.named_parameters())
        assert flags(net) == before

    def fresh() -> None:
        net._functional = {}  # so that its making is interrupted too

    act()
    everywhere(act, check)
    everywhere(act, check, fresh=fresh, points=40)
    if task == "c" and training:
        del expected["c"]  # its statistics moved, as they should
    for name, output in expected.items():
        assert torch.equal(evaluate(net, name, X), output)
        with torch.no_grad():
            assert torch.equal(net.merge(name)(X), output)
    assert {name: tensor.data_ptr() for name, tensor in net.backbone.named_parameters()} == where
    net.double()
    assert all(torch.allclose(evaluate(net, name, X.double()).float(), output, atol=1e-5) for name, output in expected.items())
    twin = copy.deepcopy(net).float()
    assert all(torch.allclose(evaluate(twin, name, X), output, atol=1e-5) for name, output in expected.items())


def test_a_signal_at_a_random_moment_of_a_call_leaves_everything_as_it_was(net: MaskedNetwork) -> None:
    expected = {name: evaluate(net, name, X) for name in "abc"}
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for trial in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-5 * trial)
                began = time.monotonic()
                while time.monotonic() < began + 2:  # Python drops an interrupt that comes while it finalises an object
                    evaluate(net, "abc"[trial % 3], X)
            except KeyboardInterrupt:
                interrupted += 1
            assert net.hash_backbone() == net.backbone_sha256
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 140
    for name, output in expected.items():
        assert torch.equal(evaluate(net, name, X), output)
        with torch.no_grad():
            assert torch.equal(net.merge(name)(X), output)


def test_after_an_interrupt_a_call_keeps_no_task_in_memory_and_another_takes_its_place(net: MaskedNetwork) -> None:
    """By a hook, which runs in the middle of the first task's call: an interrupt, and a call of another task."""
    expected = {name: evaluate(net, name, X) for name in "ab"}
    inner: list[torch.Tensor] = []

    def interrupt(module: nn.Module, inputs: object) -> None:
        raise KeyboardInterrupt

    handle = net.backbone.get_submodule("body.3").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, "a", X)
    handle.remove()
    pairs = zip(net._functional[False].module.parameters(), net.backbone.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)

    def nested(module: nn.Module, inputs: object) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner.append(net(X, task="b"))

    handle = net.backbone.get_submodule("body.3").register_forward_pre_hook(nested)
    assert torch.equal(evaluate(net, "a", X), expected["a"])
    assert torch.equal(inner[1], expected["b"])
    handle.remove()


def test_a_layer_that_writes_into_its_weights_is_found_out_when_a_call_ends_by_an_error() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.offset = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.offset.add_(1)
            return self.layer(x[:, :2]) + x

    net = MaskedNetwork(Writes())
    net.add_task("a", masks.Piggyback())
    with pytest.raises(RuntimeError, match=r"wrote into its weights"):
        net(torch.ones(1, 3), task="a")


def test_an_interrupted_switch_of_a_deployed_network_is_not_used(net: MaskedNetwork) -> None:
    net.delete_task("c")
    expected = {name: evaluate(net, name, X) for name in "ab"}
    deployed = net.deploy()
    for name in "ab":
        deployed.prepare(name)
    refused = 0

    def act() -> None:
        deployed.activate("b")

    def check() -> None:
        nonlocal refused
        if deployed._whole:
            assert torch.equal(deployed(X), expected[deployed.task])
        else:
            with pytest.raises(RuntimeError, match="broken off half-way"):
                deployed(X)
            refused += 1

    everywhere(act, check, fresh=lambda: deployed.activate("a"))
    assert refused > 5
    deployed.activate("a")
    assert torch.equal(deployed(X), expected["a"])


METHODS = {
    "ternary": lambda: masks.Piggyback(start="uniform", ternary=True),
    "affine": lambda: masks.Affine(channel_wise=True),
    "ksm": masks.KSM,
    "supsup": lambda: masks.SupSup(density=0.3, allocation="global"),
    "sparse signs": lambda: masks.SparseSigns(share=0.3),
    "mixed": lambda: masks.Mixed(method=masks.Piggyback(init=6e-3), trainable_copies=["body.3.*"]),
}


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("method", METHODS)
def test_freezing_and_continuing_that_are_interrupted_can_be_done_again(method: str) -> None:
    plain = MaskedNetwork(WithHead(), head="head")
    plain.add_task("a", METHODS[method](), head=head())
    train(plain, "a", X)
    trained = copy.deepcopy(plain)
    plain.freeze_task("a")
    expected, net = evaluate(plain, "a", X), trained

    def again() -> None:
        nonlocal net
        net = copy.deepcopy(trained)

    def freeze() -> None:
        net.freeze_task("a")

    def check() -> None:
        evaluate(net, "a", X)
        net.freeze_task("a")
        assert torch.equal(evaluate(net, "a", X), expected)
        assert not any(p.requires_grad for p in net.state("a").parameters())

    everywhere(freeze, check, fresh=again, points=60)

    frozen = copy.deepcopy(plain)
    frozen.continue_task("a")
    start = evaluate(frozen, "a", X)

    def frozen_again() -> None:
        nonlocal net
        net = copy.deepcopy(plain)

    def check_continued() -> None:
        evaluate(net, "a", X)
        state = net.continue_task("a")
        assert torch.equal(evaluate(net, "a", X), start)
        assert all(p.requires_grad for p in state.parameters())

    everywhere(lambda: net.continue_task("a"), check_continued, fresh=frozen_again, points=60)


def test_tasks_are_added_renamed_deleted_and_saved_whole_or_not_at_all(net: MaskedNetwork, tmp_path: Path) -> None:
    expected = {name: evaluate(net, name, X) for name in "ab"}
    net.register_task(net.save_task("a", tmp_path / "a.safetensors"), name="lazy")

    def check() -> None:
        assert {"b"} < set(net.tasks()) <= {"a", "b", "c", "new", "lazy", "other"}
        for name in net.tasks():
            output = evaluate(net, name, X)
            if name in expected:
                assert torch.equal(output, expected[name])
        assert ("a" in net.tasks()) != ("new" in net.tasks())
        for task, old in (("new", "a"), ("other", "lazy")):
            if task in net.tasks():
                assert torch.equal(evaluate(net, task, X), expected["a"])
                net.rename_task(task, old)

    everywhere(lambda: (net.rename_task("a", "new"), net.rename_task("lazy", "other")), check, fresh=check)

    def add() -> None:
        net.add_task("d", masks.Piggyback(), head=head())

    def check_added() -> None:
        for name in net.tasks():
            evaluate(net, name, X)

    def without() -> None:
        if "d" in net.tasks():
            net.delete_task("d")

    everywhere(add, check_added, fresh=without, points=60)
    everywhere(without, check_added, fresh=lambda: None if "d" in net.tasks() else add(), points=20)

    state, before = net.state("b"), dict(net.state("b").info)

    def save() -> None:
        net.save_task("b", tmp_path / "b.safetensors", info={"note": 1})

    def check_saved() -> None:
        assert state.info in (before, {"note": 1})
        state.info = dict(before)

    everywhere(save, check_saved, points=40)


def test_an_interrupted_search_for_the_task_leaves_no_hooks(net: MaskedNetwork) -> None:
    net.delete_task("b")
    for name in net.tasks():
        net.freeze_task(name)

    def check() -> None:
        assert not any(module._forward_pre_hooks for module in net.modules())
        assert not any(m._forward_pre_hooks for kept in net._functional.values() for m in kept.module.modules())

    everywhere(lambda: by_norm_statistics(net, X), check, points=60)
    check()


def test_an_interrupted_superposition_leaves_every_head_as_it_is(net: MaskedNetwork) -> None:
    expected = {name: evaluate(net, name, X) for name in "abc"}
    own = {name: list(net.state(name).parameters()) for name in "abc"}

    def check() -> None:
        for name, tensors in own.items():
            assert all(ours is theirs for ours, theirs in zip(net.state(name).parameters(), tensors, strict=True))

    everywhere(lambda: by_gradient(net, X), check)
    assert all(torch.equal(evaluate(net, name, X), output) for name, output in expected.items())


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_interrupt_does_not_switch_activation_checkpointing_off_elsewhere(net: MaskedNetwork, reentrant: bool) -> None:
    layer = nn.Linear(2, 2)

    def check() -> None:
        x = torch.ones(1, 2, requires_grad=True)
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant).sum().backward()

    check()
    interrupted = 0
    for n in range(1, 200):
        with interrupt_at(n, (activation_checkpointing.__file__,)) as seen, suppress(KeyboardInterrupt):
            net(X, task="c")
        torch.set_grad_enabled(True)
        check()
        if seen[0] < n:
            break
        interrupted += 1
    assert 10 < interrupted < 150, "every line of it"
    # However that left PyTorch, it is refused where it must be, and PyTorch is as it was after that.
    plain = MaskedNetwork(_Checkpointed(reentrant), head="head")
    plain.add_task("a", masks.Piggyback(), head=head())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="activation checkpointing is on"):
            plain(X, task="a")
        check()


class _Checkpointed(WithHead):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=self.reentrant))
