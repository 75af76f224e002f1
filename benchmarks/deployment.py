"""Running trained tasks: merged inference, hot swap, cached and mixed batches, each against its plain peer.

python benchmarks/deployment.py --rounds 21
"""

import argparse
import copy
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from common import alternate, device, end, environment, judge, per_round, report
from torch import nn

from img2img import MaskedNetwork, masks

METHODS: dict[str, Callable[[], masks.MaskMethod]] = {
    "piggyback": lambda: masks.Piggyback(start="uniform"),
    "piggyback, kernel": lambda: masks.Piggyback(start="uniform", granularity="kernel"),
    "piggyback, ternary": lambda: masks.Piggyback(start="uniform", ternary=True),
    "affine, full": masks.Affine,
    "ksm": masks.KSM,
    "supsup": lambda: masks.SupSup(density=0.5),
    "sparse signs": masks.SparseSigns,
    "dense signs": masks.DenseSigns,
}

KNOWN = {"sparse-signs": 2.41, "dense-signs": 2.41}
"""Above the goal of two copies of the weights: a product and a sum, with the signs in a byte each."""


def network() -> tuple[nn.Module, MaskedNetwork]:
    torch.manual_seed(0)
    plain = smp.Unet("resnet34", encoder_weights=None).to(device(), memory_format=torch.channels_last).eval()
    net = MaskedNetwork(plain, head="segmentation_head").to(device(), memory_format=torch.channels_last)
    for name, method in METHODS.items():
        task = name.replace(", ", "-").replace(" ", "-")
        net.add_task(task, method(), head=copy.deepcopy(plain.segmentation_head))
        with torch.no_grad():  # half of the bits, whatever the method starts with
            for _, mask in net.state(task).named_masks():
                if getattr(mask, "score", None) is not None:
                    mask.score.copy_(mask.scores_for(torch.rand_like(mask.score) < 0.5))
        net.freeze_task(task)
    return plain, net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    options.rounds = 11 if options.short else options.rounds
    print(environment())
    plain, net = network()
    x = torch.rand(6, 3, options.size, options.size, device=device()).contiguous(memory_format=torch.channels_last)
    tasks = list(net.tasks())

    with torch.inference_mode():
        merged = net.merge(tasks[0])
        runs: dict[str, Callable[[], object]] = {
            "backbone": lambda: plain(x),
            "merged": lambda: merged(x),
            "cached masks": lambda: net(x, task=tasks[0]),
        }
        report(f"inference, {options.size} px, batch 6", alternate(runs, rounds=options.rounds), peers=["backbone"])
        single = x[:1].contiguous(memory_format=torch.channels_last)
        runs = {"merged": lambda: merged(single), "cached masks": lambda: net(single, task=tasks[0])}
        times = alternate(runs, rounds=4 * options.rounds)
        report(f"inference, {options.size} px, batch 1", times, peers=["merged"])
        judge("a task through the network / merged, batch 1", per_round(times, "cached masks", "merged"), 1.01)

        mixed: dict[str, Callable[[], object]] = {
            "six calls": lambda: [net(x[i : i + 1], task=task) for i, task in enumerate(tasks[:6])],
            "a mixed batch of six tasks": lambda: net(x, task=tasks[:6]),
            "the same, two tasks in threes": lambda: net(x, task=[tasks[0], tasks[1]] * 3),
        }
        times = alternate(mixed, rounds=options.rounds)
        report(f"mixed batch, {options.size} px, batch 6", times, peers=["six calls"])
        judge("a mixed batch of six tasks / six calls", per_round(times, "a mixed batch of six tasks", "six calls"), 1.02)

    deployed = net.deploy()
    weights = list(net.masked_weights().values())
    places = [torch.empty_like(w) for w in weights]

    def copy_weights() -> None:
        for place, weight in zip(places, weights, strict=True):
            place.copy_(weight)

    swaps: dict[str, Callable[[], object]] = {"plain copy of the weights": copy_weights, "deactivate": deployed.deactivate}
    for task in tasks:
        deployed.prepare(task)
        swaps[f"activate {task}"] = lambda task=task: deployed.activate(task)
    times = alternate(swaps, rounds=options.rounds)
    copied = "plain copy of the weights"
    report("hot swap from decoded masks", times, peers=[copied])
    for task in tasks:
        judge(f"activate {task} / {copied}", per_round(times, f"activate {task}", copied), 2.0, known=KNOWN.get(task))
    end()


if __name__ == "__main__":
    main()
