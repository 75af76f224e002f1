"""What a network does with its tasks: starts, names, mixed batches, files that are read when used."""

import copy
from pathlib import Path

import pytest
import torch
from mask_zoo import WithHead, evaluate, head, train
from torch import nn

from img2img import InputError, MaskedNetwork, masks
from img2img.errors import TrainingDivergedError
from img2img.masks.storage import read_header


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8)


@pytest.fixture
def net(x: torch.Tensor) -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head")
    for i, task in enumerate("abc"):
        net.add_task(task, masks.Piggyback(start="uniform"), head=head(2 + i))
        train(net, task, x + i)
        net.freeze_task(task)
    return net


# ---------------------------------------------------------------------- starts


def test_a_warm_start_has_the_others_mask_and_norm_state_and_a_head_of_its_own(net: MaskedNetwork) -> None:
    state = net.add_task("d", masks.Piggyback(), head=head(4), start_from="b")
    theirs = net.state("b")
    assert all(torch.equal(m, theirs.binaries()[n]) for n, m in state.binaries().items())
    assert all(torch.equal(t, theirs.norm_tensors()[n]) for n, t in state.norm_tensors().items())
    assert state.density() != 1.0
    assert not state.frozen
    assert all(p.requires_grad for p in state.parameters())


def test_a_warm_started_task_shares_nothing_with_its_source(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = evaluate(net, "b", x)
    net.add_task("d", masks.Piggyback(), head=head(4), start_from="b")
    train(net, "d", x)
    assert torch.equal(evaluate(net, "b", x), before)


def test_a_start_from_a_task_that_is_not_there_adds_nothing(net: MaskedNetwork) -> None:
    with pytest.raises(InputError, match="no task 'z'"):
        net.add_task("d", masks.Piggyback(), head=head(), start_from="z")
    assert net.tasks() == ("a", "b", "c")


def test_a_start_from_a_task_without_masks_leaves_the_fresh_start(net: MaskedNetwork) -> None:
    net.add_task("plain", masks.Identity(), head=head())
    state = net.add_task("d", masks.Piggyback(), head=head(), start_from="plain")
    assert state.density() == 1.0


def test_a_continued_task_begins_where_it_ended_and_others_stay_bit_equal(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = {task: evaluate(net, task, x) for task in net.tasks()}
    state = net.continue_task("b")
    assert torch.equal(evaluate(net, "b", x), before["b"])
    assert all(p.requires_grad for p in state.parameters())
    train(net, "b", x + 1, steps=8)
    net.freeze_task("b")
    assert not torch.equal(evaluate(net, "b", x), before["b"])
    assert all(torch.equal(evaluate(net, task, x), before[task]) for task in "ac")
    assert net.hash_backbone() == net.backbone_sha256


@pytest.mark.parametrize(
    "method", [masks.Piggyback(), masks.SupSup(), masks.KSM(), masks.SparseSigns()], ids=lambda m: type(m).__name__
)
def test_a_training_that_has_diverged_is_not_frozen(net: MaskedNetwork, method: masks.MaskMethod, x: torch.Tensor) -> None:
    state = net.add_task("d", method, head=head())
    name, score = next((n, p) for n, p in state.named_parameters() if n.startswith("masks"))
    with torch.no_grad():
        score.view(-1)[0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=f"^{name} of the task .*NaN"):
        net.freeze_task("d")
    assert not state.frozen
    with torch.no_grad():
        score.nan_to_num_(0.0)
    net.freeze_task("d")
    assert state.frozen


@pytest.mark.parametrize("fused", [False, True])
def test_an_evaluation_between_steps_sees_the_scores_of_now(x: torch.Tensor, fused: bool) -> None:
    """Fused optimisers change tensors without a trace in the counters by which PyTorch tells that one has changed."""
    net = MaskedNetwork(WithHead(), head="head").eval()
    state = net.add_task("new", masks.Piggyback(start="uniform"), head=head())
    optimiser = torch.optim.Adam(state.parameters(), lr=0.1, fused=fused)
    before = evaluate(net, "new", x)
    for _ in range(5):
        optimiser.zero_grad()
        net(x, task="new").square().sum().backward()
        optimiser.step()
    after = evaluate(net, "new", x)
    assert not torch.equal(after, before)
    assert torch.equal(after, evaluate(copy.deepcopy(net), "new", x))


def test_continuing_a_task_in_training_changes_nothing(net: MaskedNetwork) -> None:
    state = net.add_task("d", masks.Piggyback(start="uniform"), head=head())
    scores = [p.clone() for p in state.parameters()]
    net.continue_task("d")
    assert all(torch.equal(p, q) for p, q in zip(state.parameters(), scores, strict=True))


def test_statistics_alone_may_be_a_tasks_own(x: torch.Tensor) -> None:
    net = MaskedNetwork(WithHead(), head="head")
    state = net.add_task("a", masks.Piggyback(), head=head(), norm="statistics")
    assert not list(state.norm.parameters())
    assert "body.1.running_mean" in state.norm_tensors()
    net.train()(x, task="a")
    assert state.norm_tensors()["body.1.num_batches_tracked"].item() == 1
    assert net.hash_backbone() == net.backbone_sha256


# ---------------------------------------------------------------------- names


def test_a_renamed_task_keeps_its_outputs_and_its_place(net: MaskedNetwork, x: torch.Tensor) -> None:
    before = evaluate(net, "b", x)
    net.rename_task("b", "edges")
    assert net.tasks() == ("a", "edges", "c")
    assert torch.equal(evaluate(net, "edges", x), before)
    with pytest.raises(InputError, match="no task 'b'"):
        net(x, task="b")
    with pytest.raises(InputError, match="already"):
        net.rename_task("edges", "a")
    with pytest.raises(InputError, match="no task 'b'"):
        net.rename_task("b", "d")
    assert net.tasks() == ("a", "edges", "c")


# ---------------------------------------------------------------------- mixed batches


def test_a_mixed_batch_equals_the_groups_separate_calls_in_the_order_of_the_samples(net: MaskedNetwork, x: torch.Tensor) -> None:
    net.eval()
    tasks = ["b", "a", "c", "b", "a", "b"]
    with torch.no_grad():
        mixed = net(x, task=tasks)
        for task in "abc":
            rows = [i for i, t in enumerate(tasks) if t == task]
            for row, expected in zip(rows, net(x[rows], task=task), strict=True):
                assert torch.equal(mixed[row], expected)
    assert [y.shape for y in mixed] == [(2 + "abc".index(t), 8, 8) for t in tasks]


def test_a_mixed_batch_gives_each_task_its_own_gradients(net: MaskedNetwork, x: torch.Tensor) -> None:
    for task in "ab":
        net.continue_task(task)
    net.eval()
    sum(y.square().sum() for y in net(x, task=["a", "b"] * 3)).backward()
    mixed = {task: [p.grad.clone() for p in net.state(task).parameters()] for task in "ab"}
    net.zero_grad()
    for i, task in enumerate("ab"):
        net(x[i::2], task=task).square().sum().backward()
        for p, grad in zip(net.state(task).parameters(), mixed[task], strict=True):
            assert torch.equal(p.grad, grad)


def test_a_mixed_batch_of_several_inputs_and_outputs_goes_sample_by_sample() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, *, shift: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
            return {"y": self.layer(x) * scale + shift, "x": x}

    net = MaskedNetwork(Two())
    net.add_task("a", masks.Piggyback(start="uniform"))
    net.add_task("b", masks.Piggyback(start="uniform"))
    net.eval()
    x, shift = torch.randn(3, 4), torch.randn(3, 3)
    mixed = net(x, task=["b", "a", "b"], shift=shift, scale=2.0)
    assert torch.equal(mixed[1]["y"], net(x[1:2], task="a", shift=shift[1:2], scale=2.0)["y"][0])
    assert torch.equal(mixed[2]["y"], net(x[::2], task="b", shift=shift[::2], scale=2.0)["y"][1])
    assert torch.equal(mixed[2]["x"], x[2])


def test_a_mixed_batch_needs_a_name_for_each_sample(net: MaskedNetwork, x: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"2 task names.*\(6, 3, 8, 8\)"):
        net(x, task=["a", "b"])


# ---------------------------------------------------------------------- tasks on disk


@pytest.fixture
def paths(net: MaskedNetwork, tmp_path: Path) -> list[Path]:
    return [net.save_task(task, tmp_path / f"{task}.safetensors") for task in net.tasks()]


def _other(net: MaskedNetwork, **options: int) -> MaskedNetwork:
    return MaskedNetwork(net.copy_backbone(head()), head="head", **options)


def test_a_registered_task_is_read_when_it_is_used(net: MaskedNetwork, paths: list[Path], x: torch.Tensor) -> None:
    other = _other(net)
    assert [other.register_task(path) for path in paths] == ["a", "b", "c"]
    assert other.tasks() == ("a", "b", "c")
    assert other._tasks.loaded() == ()
    assert torch.equal(evaluate(other, "b", x), evaluate(net, "b", x))
    assert other._tasks.loaded() == ("b",)


def test_tasks_read_from_disk_are_bounded_and_the_least_recently_used_goes(
    net: MaskedNetwork, paths: list[Path], x: torch.Tensor
) -> None:
    expected = {task: evaluate(net, task, x) for task in "abc"}
    one = sum(t.numel() * t.element_size() for t in [*net.state("c").parameters(), *net.state("c").buffers()])
    other = _other(net, loaded_bytes=2 * one)
    other.add_task("mine", masks.Piggyback(), head=head())
    for path in paths:
        other.register_task(path)
    for task in "abacb":
        assert torch.equal(evaluate(other, task, x), expected[task])
    assert other._tasks.loaded() == ("mine", "b", "c")


def test_a_registered_task_that_is_continued_stays_in_memory(net: MaskedNetwork, paths: list[Path], x: torch.Tensor) -> None:
    other = _other(net, loaded_bytes=0)
    for path in paths:
        other.register_task(path)
    other.continue_task("a")
    train(other, "a", x)
    after = evaluate(other, "a", x)
    evaluate(other, "b", x)
    evaluate(other, "c", x)
    assert torch.equal(evaluate(other, "a", x), after)
    assert other._tasks.loaded() == ("a", "c")


def test_a_registered_task_may_be_renamed_deleted_and_copied_with_the_network(
    net: MaskedNetwork, paths: list[Path], x: torch.Tensor
) -> None:
    other = _other(net)
    for path in paths:
        other.register_task(path)
    other.rename_task("a", "first")
    other.delete_task("b")
    assert other.tasks() == ("first", "c")
    assert paths[1].exists()
    twin = copy.deepcopy(other)
    assert torch.equal(evaluate(twin, "first", x), evaluate(net, "a", x))


@pytest.mark.parametrize("change", ["delete", "rename"])
def test_a_task_whose_file_is_coded_relative_to_another_outlives_it(tmp_path: Path, x: torch.Tensor, change: str) -> None:
    """Also where it was read before, and has been dropped for others since."""
    net = MaskedNetwork(WithHead(), head="head")
    for task, start in (("a", None), ("b", "a"), ("c", None)):
        net.add_task(task, masks.Piggyback(start="uniform"), head=head(), start_from=start)
        net.freeze_task(task)
    paths = [net.save_task(task, tmp_path / f"{task}.safetensors", relative_to="a" if task == "b" else None) for task in "abc"]
    assert read_header(paths[1])["relative_to"] is not None
    expected = evaluate(net, "b", x)
    other = _other(net, loaded_bytes=0)
    for path in paths:
        other.register_task(path)
    for task in "bc":
        evaluate(other, task, x)
    if change == "delete":
        other.delete_task("a")
    else:
        other.rename_task("a", "first")
    evaluate(other, "c", x)
    assert torch.equal(evaluate(other, "b", x), expected)


def test_registering_refuses_what_is_no_task_of_this_backbone_and_loading_what_has_changed(
    net: MaskedNetwork, paths: list[Path], x: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="belongs to the backbone"):
        MaskedNetwork(WithHead(), head="head").register_task(paths[0])
    with pytest.raises(InputError, match="no task file"):
        net.register_task(tmp_path / "nothing.safetensors")
    other = _other(net)
    other.register_task(paths[0])
    paths[0].write_bytes(paths[0].read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"a\.safetensors"):
        evaluate(other, "a", x)
    assert other.tasks() == ("a",)


def test_the_memory_of_a_thousand_registered_tasks_is_that_of_their_names(
    net: MaskedNetwork, paths: list[Path], x: torch.Tensor
) -> None:
    other = _other(net, loaded_bytes=0)
    for i in range(1000):
        other.register_task(paths[i % 3], name=f"t{i}")
    expected = [evaluate(net, task, x) for task in "abc"]
    for i in (0, 500, 999, 1):
        assert torch.equal(evaluate(other, f"t{i}", x), expected[i % 3])
    assert len(other._tasks.loaded()) == 1


# ---------------------------------------------------------------------- casts


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_a_network_leaves_scores_in_float32(dtype: torch.dtype, x: torch.Tensor) -> None:
    net = MaskedNetwork(WithHead(), head="head")
    state = net.add_task("a", masks.Piggyback(start="uniform"), head=head())
    scores = {n: p.clone() for n, p in state.masks.named_parameters()}
    net.to(dtype)
    assert all(w.dtype == dtype for w in net.masked_weights().values())
    assert all(torch.equal(p, scores[n]) for n, p in state.masks.named_parameters())
    out = net(x.to(dtype), task="a")
    out.float().square().sum().backward()
    assert out.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in state.masks.parameters())
    net.freeze_task("a")
    with torch.no_grad():
        assert torch.equal(net.eval()(x.to(dtype), task="a"), net.merge("a")(x.to(dtype)))


def test_scores_follow_the_memory_format_of_the_network(x: torch.Tensor) -> None:
    net = MaskedNetwork(WithHead(), head="head")
    state = net.add_task("a", masks.Piggyback(), head=head())
    net.to(memory_format=torch.channels_last)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in state.masks.parameters())


# ---------------------------------------------------------------------- what is masked


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (nn.Conv2d, {"body.0.weight", "body.3.weight"}),
        ("body.0.*", {"body.0.weight"}),
        (["body.0.weight", "*.3.weight"], {"body.0.weight", "body.3.weight"}),
        (["body.0.*", nn.Module], {"body.0.weight", "body.3.weight"}),
        (lambda name, module, p: name == "body.3.bias", {"body.3.bias"}),
    ],
)
def test_patterns_types_and_functions_choose_what_is_masked(select: object, expected: set[str]) -> None:
    assert set(MaskedNetwork(WithHead(), head="head", select=select).roles.masked) == expected  # type: ignore[arg-type]


def test_a_selection_that_is_none_of_these_is_refused() -> None:
    with pytest.raises(InputError, match="patterns, layer types, or one function"):
        MaskedNetwork(WithHead(), select=["body.*", 3])  # type: ignore[list-item]


@pytest.mark.parametrize("method", [masks.Affine(channel_wise=True), masks.KSM(), masks.SupSup()], ids=lambda m: m.name)
def test_a_selection_may_name_biases_too(method: masks.MaskMethod) -> None:
    backbone = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(6, 2, 3))
    net = MaskedNetwork(backbone, select=lambda name, module, p: True)
    net.add_task("a", method)
    train(net, "a", torch.randn(2, 4, 5, 5))
    net.freeze_task("a")
    assert {name for name, _ in net.state("a").named_masks()} == {"0.weight", "0.bias", "1.weight", "1.bias"}
