"""Training ten tasks of LeNet-300-100 at once against training them one by one, on the same batches.

    python benchmarks/stacked_training.py --tasks 10 --masks 10 100 250 --rounds 5

A round is a few steps of every task: forward, loss, backward and RMSprop, batch 128. Masks of SupSup, and coefficients of
ImpressLearn over a basis of K masks.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import alternate, device, end, environment, judge, per_round, report
from torch import Tensor, nn

from img2img import MaskedNetwork, masks
from img2img.masks import Basis, MaskMethod
from img2img.research.impresslearn.stacked_training import TABLE_3, train_stacked

KNOWN = {"supsup": 1.1}
"""Above the goal of 1: each mask has to find a threshold of its own."""


def network(method: MaskMethod, tasks: int, count: int | None = None) -> MaskedNetwork:
    layers = nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    net = MaskedNetwork(masks.randomise(nn.Sequential(*layers), kind="kaiming_normal", seed=0)).to(device())
    if count is not None:
        net.add_basis("impresslearn", Basis.random(net.layers(), count=count, density=0.1, seed=0))
    for task in range(tasks):
        net.add_task(str(task), method)
    return net.train()


def one_by_one(net: MaskedNetwork, batches: list[tuple[Tensor, Tensor]]) -> None:
    for index, task in enumerate(net.tasks()):
        optimiser = TABLE_3(list(net.state(task).parameters()))
        for x, y in batches:
            optimiser.zero_grad()
            F.cross_entropy(net(x[index], task=task), y[index]).backward()
            optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--masks", type=int, nargs="+", default=[10, 100, 250])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--short", action="store_true", help="10 masks, fewer rounds and steps")
    options = parser.parse_args()
    if options.short:
        options.masks, options.rounds, options.steps = [10], 5, 4
    print(environment())
    shape = options.tasks, 128
    batches = [
        (torch.randn(*shape, 784, device=device()), torch.randint(10, shape, device=device())) for _ in range(options.steps)
    ]
    cases: dict[str, tuple[MaskMethod, int | None]] = {"supsup": (masks.SupSup(density=0.1), None)}
    cases |= {f"impresslearn, K = {count}": (masks.ImpressLearn(basis="impresslearn"), count) for count in options.masks}
    for name, (method, count) in cases.items():
        alone, together = (network(method, options.tasks, count) for _ in range(2))
        runs: dict[str, Callable[[], object]] = {
            "one by one": lambda net=alone: one_by_one(net, batches),
            "together": lambda net=together: train_stacked(net, net.tasks(), batches, steps=options.steps),
        }
        title = f"{name}: {options.steps} steps of {options.tasks} tasks"
        times = alternate(runs, rounds=options.rounds, warmup=1)
        report(title, times, peers=["one by one"])
        judge(f"{name}: together / one by one", per_round(times, "together", "one by one"), 1.0, known=KNOWN.get(name))
    end()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
