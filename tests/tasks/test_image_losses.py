"""The losses of tasks with image output: L1, MSE, a perceptual term, and a discriminator that training alone has."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_again_and_again
from torch import nn

from img2img import InputError
from img2img.backbones.perceptual import NETWORKS
from img2img.masks.storage import read_task_file
from img2img.tasks import build_task
from img2img.tasks.adversary import Adversary, GanOptions, PatchDiscriminator, discriminator_loss, generator_loss
from img2img.tasks.base import Example
from img2img.training.run import run
from img2img.training.strategy_files import read_learned

NETWORK = {"name": "squeezenet1_1", "weights": None}
GAN = {"receptive_field": 16, "channels": 4}
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def example() -> Example:
    return Example(torch.rand(2, 3, 40, 48), torch.rand(2, 3, 40, 48))


def _raw(task: Any) -> torch.Tensor:
    return torch.randn(2, task.out_channels, 40, 48)


# ---------------------------------------------------------------------- terms


@pytest.mark.parametrize("options", [{"kind": "edges", "drawing": "sobel"}, {"kind": "translation"}, {"kind": "denoising"}])
def test_the_terms_add_up_by_their_weights(options: dict[str, Any], example: Example) -> None:
    plain = build_task(options)
    raw = _raw(plain)
    difference = plain.prediction(raw, example.input) - example.target
    l1, mse = difference.abs().mean().item(), difference.square().mean().item()
    own = mse * (255 / 25) ** 2 if options["kind"] == "denoising" else l1 + 2 * mse
    assert plain.loss(raw, example).item() == pytest.approx(own, rel=1e-5), "without the option the loss is the task's own"
    assert build_task(options | {"loss": {}}).loss(raw, example).item() == pytest.approx(l1, rel=1e-5)
    weighed = build_task(options | {"loss": {"l1": 0.5, "mse": 3}}).loss(raw, example).item()
    assert weighed == pytest.approx(0.5 * l1 + 3 * mse, rel=1e-5)


def test_the_perceptual_term_is_the_distance_of_deep_features(example: Example) -> None:
    torch.manual_seed(5)
    task = build_task({"kind": "edges", "drawing": "sobel", "loss": {"l1": 0, "perceptual": 2, "network": NETWORK}})
    network = task._given_loss._perceptual.network  # type: ignore[attr-defined]
    assert network.layers == NETWORKS["squeezenet1_1"].perceptual
    raw = _raw(task).requires_grad_()
    loss = task.loss(raw, example)
    given, wanted = network(task.prediction(raw, example.input)), network(example.target)
    cosines = [nn.functional.cosine_similarity(given[k], wanted[k], dim=1).mean() for k in network.layers]
    # Of two vectors of length 1 the squared distance is 2 - 2 cos; random weights leave some pixels without a response.
    alive = [(given[k].norm(dim=1) > 0) & (wanted[k].norm(dim=1) > 0) for k in network.layers]
    assert all(a.all() for a in alive)
    assert loss.item() == pytest.approx(2 * (2 - 2 * sum(cosines).item() / len(cosines)), rel=1e-4)  # type: ignore[union-attr]
    loss.backward()
    assert raw.grad is not None
    assert raw.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_what_the_option_cannot_be_is_refused() -> None:
    def refused(message: str, **loss: Any) -> None:
        with pytest.raises(InputError, match=message):
            build_task({"kind": "translation", "loss": loss})

    refused(r"translation.*no weight.*l1", l1=0)
    refused(r"perceptual.*loss\.network", perceptual=1)
    refused(r"translation.*l2", l2=1)
    refused(r"l1.*-1", l1=-1)
    refused(r"receptive_field.*50", gan={"receptive_field": 50})
    refused(r"mode.*wgan", gan={"mode": "wgan"})


def test_inference_and_the_task_file_need_nothing_of_the_loss(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.safetensors")
    network = {"name": "vgg16", "weights": missing}
    task = build_task({"kind": "edges", "drawing": "sobel", "loss": {"perceptual": 1, "network": network, "gan": GAN}})
    assert task.options() == {"kind": "edges", "drawing": "sobel"}
    with pytest.raises(InputError, match=r"none\.safetensors"):
        task._given_loss.load()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- the discriminator


@pytest.mark.parametrize("field", [16, 34, 70])
def test_a_patch_is_as_large_as_the_option_says(field: int) -> None:
    network = PatchDiscriminator(receptive_field=field, channels=4).double()
    for name, module in network.layers.named_children():  # normalisation looks at the whole image
        if isinstance(module, nn.InstanceNorm2d):
            network.layers[int(name)] = nn.Identity()
    input = torch.rand(1, 3, 160, 160, dtype=torch.double)
    image = torch.rand(1, 3, 160, 160, dtype=torch.double, requires_grad=True)
    rows = []
    for channel in (input.requires_grad_(), image):
        logits = network.layers(2 * torch.cat([input, image], 1) - 1)
        middle = logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle, channel)
        rows.append(int((gradient.abs().sum((0, 1)) > 0).any(1).sum()))
    assert rows == [field, field], "of the input and of the image alike"


def test_the_discriminator_has_the_size_of_pix2pix() -> None:
    # Isola et al.'s 70 x 70 network, batch normalisation's 2 * (128 + 256 + 512) parameters left out.
    count = sum(p.numel() for p in PatchDiscriminator(receptive_field=70, channels=64).parameters())
    assert count == (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) * 16 + 64 + 1


def test_the_losses_are_those_of_the_papers() -> None:
    true, made = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 0.25, 3.0])

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    lsgan = ((1 + 0.25) / 2 + (1 + 0.0625 + 9) / 3) / 2
    assert discriminator_loss(true, made, "lsgan").item() == pytest.approx(lsgan)
    assert generator_loss(made, "lsgan").item() == pytest.approx((4 + 0.5625 + 4) / 3)
    logs = [-math.log(s(2)), -math.log(s(0.5))], [-math.log(1 - s(x)) for x in (-1, 0.25, 3)]
    assert discriminator_loss(true, made, "vanilla").item() == pytest.approx((sum(logs[0]) / 2 + sum(logs[1]) / 3) / 2)
    assert generator_loss(made, "vanilla").item() == pytest.approx(-sum(math.log(s(x)) for x in (-1, 0.25, 3)) / 3)


def test_each_side_learns_from_its_own_loss_alone(example: Example) -> None:
    task = build_task({"kind": "edges", "drawing": "sobel", "loss": {"gan": GAN | {"weight": 0.5}}})
    adversary = task.adversary()
    assert isinstance(adversary, Adversary)
    assert task.adversary() is not adversary
    raw = _raw(task).requires_grad_()
    adversary.discriminator_loss(raw, example).backward()
    assert raw.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adversary.parameters())
    made = adversary.discriminator(example.input, task.prediction(raw, example.input))
    term = adversary.generator_loss(raw, example)
    assert term.item() == pytest.approx(0.5 * generator_loss(made, "lsgan").item())
    term.backward()
    assert raw.grad is not None
    assert raw.grad.abs().sum() > 0


def test_images_in_a_batch_are_judged_each_by_itself_and_with_their_input(example: Example) -> None:
    adversary = build_task({"kind": "translation", "loss": {"gan": GAN}}).adversary()
    assert adversary is not None
    judge = adversary.discriminator
    both = judge(example.input, example.target)
    assert torch.allclose(judge(example.input[1:], example.target[1:]), both[1:], atol=1e-5)
    assert not torch.allclose(judge(example.input.flip(0), example.target), both, atol=1e-3)


def test_a_discriminator_tells_images_apart_once_it_has_learned() -> None:
    adversary = build_task({"kind": "edges", "drawing": "sobel", "loss": {"gan": GAN}}).adversary()
    assert adversary is not None
    optimiser = torch.optim.Adam(adversary.parameters(), 2e-3)
    example = Example(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))  # noise is true, flat colour is made
    raw = torch.zeros(4, 6, 32, 32)
    for _ in range(40):
        optimiser.zero_grad()
        loss = adversary.discriminator_loss(raw, example)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05


def test_crops_that_it_cannot_judge_are_refused_before_any_training(config: Make, tmp_path: Path) -> None:
    assert GanOptions().smallest_crop == 24
    small = torch.rand(1, 3, 23, 40)
    adversary = build_task({"kind": "translation", "loss": {"gan": {"channels": 1}}}).adversary()
    assert adversary is not None
    with pytest.raises(InputError, match=r"70 got crops of 40 x 23 px: expected 24.*receptive_field"):
        adversary.discriminator_loss(torch.zeros(1, 4, 23, 40), Example(small, small))
    made = config(sequence=["disks", "edges"])
    made["train"]["augmentation"]["crop"] = 20
    made["tasks"]["edges"]["task"]["loss"] = {"gan": {}}
    with pytest.raises(InputError, match=r"tasks\.edges.*20 px.*24 at least.*augmentation\.crop"):
        run(made)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- in a sequence


def _experiment(config: Make, folder: Path, method: dict[str, Any]) -> dict[str, Any]:
    made = config(out=str(folder), method=method, sequence=["disks", "edges"])
    made["tasks"]["edges"]["task"]["loss"] = {"gan": GAN | {"weight": 0.2}}
    made["device"] = {"accelerator": "cpu", "precision": "bf16-mixed"}
    return made


@pytest.mark.parametrize("method", [{"name": "piggyback", "init": 6e-3}, {"name": "finetune"}], ids=["masks", "finetune"])
def test_a_killed_adversarial_training_ends_bit_equal_and_stores_no_discriminator(
    config: Make, tmp_path: Path, method: dict[str, Any]
) -> None:
    whole = run(_experiment(config, tmp_path / "whole", method))
    # The first task takes 8 steps: in the network's sixth of the second, when the discriminator has done its own and there is a
    # checkpoint after the fourth; and from there in the network's sixth again.
    again = _experiment(config, tmp_path / "run", method)
    resumed = killed_again_and_again(lambda: run(again), 14, 2)
    assert [task["metrics"] for task in resumed["tasks"]] == [task["metrics"] for task in whole["tasks"]]
    folders = tmp_path / "whole", tmp_path / "run"
    for name in ("edges.csv", "disks.csv"):
        assert len({(folder / "metrics" / name).read_text() for folder in folders}) == 1
    if method["name"] == "piggyback":
        header, tensors = read_task_file(tmp_path / "run" / "bundle" / "tasks" / "edges.safetensors")
        assert {key.partition("/")[0] for key in tensors} == {"mask", "norm", "head"}
        assert header["info"]["task"] == {"kind": "edges", "drawing": "sobel"}
        assert len({(f / "bundle" / "tasks" / "edges.safetensors").read_bytes() for f in folders}) == 1
    else:
        own = [read_learned(folder, ["disks", "edges"]) for folder in folders]
        for first, second in zip(own[0], own[1], strict=True):
            assert json.dumps(sorted(first)) == json.dumps(sorted(second))
            assert not any("discriminator" in name for name in first)


def test_the_adversarial_term_changes_what_is_learned_and_nothing_before_it(config: Make, tmp_path: Path) -> None:
    piggyback = {"name": "piggyback", "init": 6e-3}
    losses: list[dict[str, Any]] = [{}, {"gan": GAN}]
    results = []
    for i, loss in enumerate(losses):
        made = config(out=str(tmp_path / str(i)), method=piggyback, sequence=["disks", "edges"])
        made["tasks"]["edges"]["task"]["loss"] = loss
        results.append([task["value"] for task in run(made)["tasks"]])
    first, second = zip(*results, strict=True)
    assert len(set(first)) == 1
    assert len(set(second)) == 2


def test_joint_training_refuses_a_discriminator_and_says_whose(config: Make) -> None:
    made = config(method={"name": "joint"}, sequence=["disks", "edges"], backbone_from=None)
    made["tasks"]["edges"]["task"]["loss"] = {"gan": GAN}
    with pytest.raises(InputError, match=r"joint.*edges.*loss\.gan.*finetune"):
        run(made)
