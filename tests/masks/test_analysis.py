"""Tables about masks, against counts by hand and by loops."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from mask_zoo import WithHead, head, train
from torch import Tensor, nn

from img2img import MaskedNetwork, masks
from img2img.errors import InputError
from img2img.masks import analysis, flips, plots
from img2img.masks.methods.affine import Affine
from img2img.masks.methods.ksm import KSM

UNIFORM = masks.Piggyback(start="uniform")


def _network(method: masks.MaskMethod | None = None, tasks: str = "ab", **options: object) -> MaskedNetwork:
    net = MaskedNetwork(WithHead(), head="head", **options)
    for task in tasks:
        net.add_task(task, method or UNIFORM, head=head())
    return net


def _two_layers(first: dict[str, list[int]], second: dict[str, list[int]]) -> MaskedNetwork:
    """Tasks with the given mask values in two linear layers of one output."""
    sizes = [len(next(iter(layer.values()))) for layer in (first, second)]
    net = MaskedNetwork(nn.ModuleList([nn.Linear(sizes[0], 1), nn.Linear(sizes[1], 1)]))
    for task in first:
        state = net.add_task(task, masks.Piggyback())
        for mask, values in zip(state.masks.values(), (first[task], second[task]), strict=True):
            mask.score.data = torch.tensor([values], dtype=torch.float32)
    return net


def _loop(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[int, int, float]:
    """How many values there are, how many are equal, and how many would be by chance, one by one."""
    count, equal, expected = 0, 0, 0.0
    for name in a:
        x, y = a[name].flatten().tolist(), b[name].flatten().tolist()
        p, q = sum(x) / len(x), sum(y) / len(y)
        for i, j in zip(x, y, strict=True):
            count += 1
            equal += i == j
            expected += p * q + (1 - p) * (1 - q)
    return count, equal, expected


def test_densities_are_fractions_of_ones_and_totals_weigh_layers_by_their_size() -> None:
    net = _two_layers({"a": [1, 1, 1, 0]}, {"a": [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]})
    rows = analysis.density_table(net)
    assert [asdict(row) for row in rows] == [
        {"task": "a", "layer": "0.weight", "depth": 0, "weights": 4, "density": 0.75, "effect": "zeroed", "affected": 0.25},
        {"task": "a", "layer": "1.weight", "depth": 1, "weights": 10, "density": 0.2, "effect": "zeroed", "affected": 0.8},
    ]
    (total,) = analysis.density_totals(rows)
    assert (total.weights, total.density, total.affected) == (14, pytest.approx(5 / 14), pytest.approx(9 / 14))


def test_masks_that_move_weights_count_those_and_no_zeroed_ones() -> None:
    net = MaskedNetwork(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 5, bias=False)))
    state = net.add_task("a", masks.SparseSigns())
    (first, _) = (mask for _, mask in state.named_masks())
    first.score.data[0, 1] = -0.01
    rows = analysis.density_table(net)
    assert [(row.density, row.effect, row.affected) for row in rows] == [(0.25, "moved", 0.25), (0.0, "moved", 0.0)]
    (total,) = analysis.density_totals(rows)
    assert (total.effect, total.affected, state.effect()) == ("moved", pytest.approx(1 / 14), "moved")
    (axes,) = plots.density_figure(rows).axes
    assert (axes.get_ylabel(), axes.get_title(loc="left")) == ("moved weights [%]", "Moved weights by layer")
    net.add_task("b", masks.Identity())
    assert net.state("b").effect() is None


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("granularity", ["element", "kernel"])
def test_densities_are_the_tasks_own_before_and_after_freezing(frozen: bool, granularity: str) -> None:
    net = _network(masks.Piggyback(start="uniform", granularity=granularity), tasks="a")
    expected = net.state("a").densities()
    if frozen:
        net.freeze_task("a")
    rows = analysis.density_table(net, ["a"])
    assert {row.layer: row.density for row in rows} == expected
    assert analysis.density_totals(rows)[0].density == pytest.approx(net.state("a").density())


def test_what_is_not_defined_is_none_and_can_be_written_as_json() -> None:
    net = _network()
    net.add_task("plain", masks.Identity(), head=head())
    rows = analysis.density_table(net, ["plain"])
    assert [row.density for row in rows] == [None, None]
    assert analysis.density_totals(rows)[0].density is None
    names, matrix = analysis.similarity(net)
    assert names == ("a", "b", "plain")
    assert matrix[2] == [None, None, None]
    assert [row[2] for row in matrix] == [None, None, None]
    assert analysis.similarity_by_layer(net, "a", "plain") == []
    json.dumps([matrix, [asdict(row) for row in rows]], allow_nan=False)


def test_similarity_and_kappa_by_hand() -> None:
    # The classical example of Cohen's kappa: 20 both, 5 and 10 one alone, 15 neither: observed 0.7, expected 0.5, kappa 0.4.
    a, b = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    net = _two_layers({"a": a, "b": b}, {"a": [1, 1], "b": [1, 0]})
    first, second = analysis.similarity_by_layer(net, "a", "b")
    assert (first.similarity, first.kappa) == (pytest.approx(0.7), pytest.approx(0.4))
    assert first.overlap == pytest.approx(20 / (25 * 30 / 50))
    assert (second.similarity, second.kappa, second.overlap) == (0.5, pytest.approx(0.0), pytest.approx(1.0))
    # Together: 36 of 52 equal, 25 + 1 expected.
    assert analysis.similarity(net).matrix[0][1] == pytest.approx(36 / 52)
    assert analysis.similarity(net, chance_corrected=True).matrix[0][1] == pytest.approx((36 - 26) / (52 - 26))


@pytest.mark.parametrize("method", [UNIFORM, replace(UNIFORM, granularity="kernel"), KSM()])
def test_similarities_are_those_of_a_loop_over_all_values(method: masks.MaskMethod) -> None:
    net = _network(method, tasks="abc")
    for seed, task in enumerate("abc"):
        train(net, task, torch.randn(4, 3, 8, 8) * seed)
    net.freeze_task("b")
    plain, corrected = analysis.similarity(net), analysis.similarity(net, chance_corrected=True)
    for i, a in enumerate("abc"):
        for j, b in enumerate("abc"):
            count, equal, expected = _loop(net.state(a).binaries(), net.state(b).binaries())
            assert plain.matrix[i][j] == pytest.approx(equal / count)
            assert corrected.matrix[i][j] == pytest.approx((equal - expected) / (count - expected))
    assert [plain.matrix[i][i] for i in range(3)] == [1.0] * 3


def test_kappa_is_corrected_layer_by_layer_so_that_a_common_profile_of_densities_is_no_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, sparse = ({t: (torch.rand(20000, generator=generator) < p).int().tolist() for t in "ab"} for p in (0.95, 0.05))
    net = _two_layers(dense, sparse)
    assert analysis.similarity(net).matrix[0][1] == pytest.approx(0.905, abs=0.01)
    assert analysis.similarity(net, chance_corrected=True).matrix[0][1] == pytest.approx(0, abs=0.02)


def test_independent_masks_of_which_one_is_half_dense_agree_in_about_half_of_their_values() -> None:
    net = MaskedNetwork(nn.Linear(200, 200))
    net.add_task("halves", masks.Piggyback(start="uniform"))
    net.add_task("ones", masks.Piggyback())
    assert analysis.similarity(net).matrix[0][1] == pytest.approx(0.5, abs=0.01)


def test_kappa_of_two_masks_all_ones_is_not_defined() -> None:
    net = _network(masks.Piggyback())
    assert analysis.similarity(net).matrix == [[1.0, 1.0], [1.0, 1.0]]
    assert analysis.similarity(net, chance_corrected=True).matrix == [[None, None], [None, None]]
    assert {row.kappa for row in analysis.similarity_by_layer(net, "a", "b")} == {None}


def test_only_weights_that_both_mask_are_compared() -> None:
    net = _two_layers({"a": [1, 0, 1, 0], "b": [1, 1, 1, 0]}, {"a": [0, 0], "b": [1, 1]})
    del net.state("b").masks["1/weight"]
    for order in ("ab", "ba"):
        assert analysis.similarity(net, list(order)).matrix == [[1.0, 0.75], [0.75, 1.0]]


def test_overlap_is_relative_to_chance() -> None:
    a = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]).bool()
    assert analysis.overlap(a, a) == pytest.approx(5.0), "one over the density"
    assert analysis.overlap(a, ~a) == 0.0
    assert analysis.overlap(a, torch.zeros(10).bool()) is None
    x, y = torch.rand(2, 1000, 1000) < 0.1
    assert analysis.overlap(x, y) == pytest.approx(1.0, abs=0.05)
    assert analysis.overlap(x, y) == pytest.approx((x & y).sum().item() / (x.sum() * y.sum() / x.numel()).item())


@pytest.mark.parametrize("b", [torch.ones(3), torch.ones(2).bool()])
def test_overlap_refuses_what_are_no_two_masks(b: Tensor) -> None:
    with pytest.raises(InputError, match="expected two binary masks"):
        analysis.overlap(torch.ones(3).bool(), b)


def test_values_are_summarised_by_layer_and_name() -> None:
    net = _network(Affine(channel_wise=True), "a")
    train(net, "a", torch.randn(4, 3, 8, 8))
    rows = analysis.value_table(net, "a")
    assert rows
    named = dict(net.state("a").named_masks())
    assert {(row.layer, row.name) for row in rows} == {(n, k) for n, mask in named.items() for k in mask.values()}
    for row in rows:
        values = [float(x) for x in named[row.layer].values()[row.name].flatten()]
        mean = sum(values) / len(values)
        assert row.count == len(values)
        assert row.mean == pytest.approx(mean)
        assert (row.min, row.max) == (min(values), max(values))
        assert row.std == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in values) / len(values)))
    assert analysis.value_table(_network(), "a") == []


def test_values_that_are_none_have_no_mean() -> None:
    net = _network(KSM(), "a")
    for mask in net.state("a").masks.values():
        mask.score.data.fill_(10.0)  # all ones, so that there is no scale
    assert [(row.count, row.mean, row.std) for row in analysis.value_table(net, "a")] == [(0, None, None)] * 2


def test_flips_are_counted_since_the_last_look() -> None:
    net = _two_layers({"a": [1, 1, 0, 0]}, {"a": [1] * 10})
    first, second = net.state("a").masks.values()
    meter = flips.FlipMeter(net.state("a"))
    assert [row.flips for row in meter.update()] == [0, 0]
    first.score.data = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    rows = meter.update()
    assert [(r.layer, r.depth, r.weights, r.flips, r.ratio, r.density) for r in rows] == [
        ("0.weight", 0, 4, 2, 0.5, 0.5),
        ("1.weight", 1, 10, 0, 0.0, 1.0),
    ]
    second.score.data[0, 9] = -1.0
    assert [row.flips for row in meter.update()] == [0, 1]


@pytest.mark.parametrize("method", [masks.Piggyback(init=6e-3), KSM()])
def test_flips_while_training_are_the_differences_of_the_binary_masks(method: masks.MaskMethod) -> None:
    net = _network(method, "a")
    state = net.state("a")
    meter = flips.FlipMeter(state)
    for _ in range(2):
        before = {name: mask.clone() for name, mask in state.binaries().items()}
        train(net, "a", torch.randn(4, 3, 8, 8))
        rows = meter.update()
        assert {row.layer: row.flips for row in rows} == {n: int((m != before[n]).sum()) for n, m in state.binaries().items()}
        assert {row.layer: row.density for row in rows} == state.densities()
    net.freeze_task("a")
    assert [row.flips for row in meter.update()] == [0, 0]


@pytest.mark.parametrize(
    "method", [masks.Piggyback(ternary=True, start="uniform"), masks.SparseSigns()], ids=["ternary", "signs"]
)
def test_a_change_of_sign_is_a_flip(method: masks.MaskMethod) -> None:
    net = _network(method, "a")
    state = net.state("a")
    meter = flips.FlipMeter(state)
    for sign in (1.0, -1.0):
        before = {name: mask.signed().clone() for name, mask in state.named_masks()}
        for mask in state.masks.values():
            mask.score.data.fill_(sign)
        rows = meter.update()
        again = flips.FlipMeter(state)
        again.load_state_dict(meter.state_dict())
        assert [row.flips for row in again.update()] == [0] * len(rows)
        assert {row.layer: row.flips for row in rows} == {n: int((m.signed() != before[n]).sum()) for n, m in state.named_masks()}
    assert all(row.flips == row.weights for row in rows)


def test_tasks_are_given_as_a_sequence() -> None:
    with pytest.raises(InputError, match=r"sequence of names.*\['a'\]"):
        analysis.similarity(_network(), "a")
    with pytest.raises(InputError, match="no task 'c'"):
        analysis.density_table(_network(), ["c"])


# ---------------------------------------------------------------------- figures


def _deep(layers: int) -> MaskedNetwork:
    net = MaskedNetwork(nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))))
    net.add_task("a", UNIFORM)
    net.add_task("b", Affine())
    net.add_task("plain", masks.Identity())
    return net


@pytest.mark.parametrize("layers", [3, 20, 21, 60])
def test_figures_show_the_tables_and_name_the_layers_only_when_they_are_few(layers: int) -> None:
    net = _deep(layers)
    rows = analysis.density_table(net)
    meter = flips.FlipMeter(net.state("a"))
    drawn = {
        "density": plots.density_figure(rows),
        "values": plots.value_figure(analysis.value_table(net, "b")),
        "flips": plots.flips_figure([meter.update(), meter.update()]),
    }
    (axes,) = drawn["density"].axes
    assert [line.get_label() for line in axes.lines] == ["a (zeroed)", "b (selected)"]
    assert axes.get_ylabel() == "zeroed or selected weights [%]"
    assert list(axes.lines[0].get_ydata()) == pytest.approx([100 * row.affected for row in rows if row.task == "a"])
    means = [row.mean for row in analysis.value_table(net, "b") if row.name == "k2"]
    assert list(next(a for a in drawn["values"].axes if a.get_ylabel() == "k2").lines[0].get_ydata()) == pytest.approx(means)
    assert drawn["flips"].axes[1].images[0].get_array().shape == (layers, 2)
    for figure in drawn.values():
        texts = {label.get_text() for a in figure.axes for label in (*a.get_xticklabels(), *a.get_yticklabels())}
        titles = {title for a in figure.axes for title in (a.get_xlabel(), a.get_ylabel())}
        assert ("layer, by depth" in titles) == (layers > 20)
        if layers <= 20:
            assert {str(i) for i in range(layers)} <= texts
        assert figure.axes[0].get_title(loc="left")
        figure.canvas.draw()


def test_the_similarity_figure_has_a_number_in_every_square_that_is_defined() -> None:
    net = _deep(2)
    figure = plots.similarity_figure(*analysis.similarity(net))
    assert [text.get_text() for text in figure.axes[0].texts[:1]] == ["1.00"]
    assert len(figure.axes[0].texts) == 4, "the identity has no mask"
    kappa = plots.similarity_figure(["a", "b"], [[1.0, -0.001], [-0.25, None]], chance_corrected=True)
    assert [text.get_text() for text in kappa.axes[0].texts] == ["1.00", "0.00", "−0.25"]


def test_figures_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="no rows with a density"):
        plots.density_figure(analysis.density_table(_deep(1), ["plain"]))
    with pytest.raises(InputError, match="expected a square matrix"):
        plots.similarity_figure(["a"], [[1.0], [1.0]])
    with pytest.raises(InputError, match="got no values"):
        plots.value_figure([])
    for nothing in ([], [[]]):
        with pytest.raises(InputError, match="got no rows"):
            plots.flips_figure(nothing)
