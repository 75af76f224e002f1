"""What is left of a backbone after many switches between tasks: ours, and PEFT's and LyCORIS's in the same run.

python benchmarks/drift.py --cycles 10000

A cycle activates a task at random and takes it back. PEFT and LyCORIS are measured where they are installed
(`pip install peft lycoris-lora`); img2img does not need them. LyCORIS's `onfly_merge` is left out: it keeps a copy of the weights
by `.cpu()`, which on a CPU copies nothing, so that `onfly_restore` there brings nothing back (4.1.3).
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from common import console, end, environment, judge
from rich.table import Table
from torch import Tensor, nn

from img2img import MaskedNetwork, masks

METHODS: dict[str, Callable[[], masks.MaskMethod]] = {
    "piggyback": lambda: masks.Piggyback(start="uniform"),
    "affine": masks.Affine,
    "ksm": masks.KSM,
    "lora": lambda: masks.LoRA(rank=4, alpha=4),
    "dora": lambda: masks.DoRA(rank=4, alpha=4),
    "lokr": lambda: masks.LoKr(rank=4, alpha=4),
    "ia3": masks.IA3,
    "dan": masks.DAN,
    "residual_adapter": masks.ResidualAdapter,
    "mixed": lambda: masks.Mixed(method=masks.LoRA(rank=4), trainable_copies=["0.weight"]),
}
Cycle = Callable[[int], None]


def backbone(dtype: torch.dtype) -> nn.Module:
    """Convolutions and a linear layer, all of which every library adapts: 77,664 weights."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 96, 3)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 32)).to(dtype).requires_grad_(False)


def shake(parameters: Iterator[nn.Parameter]) -> None:
    """Values as after a training."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape))


def ours(module: nn.Module) -> tuple[Cycle, Callable[[], Mapping[str, Tensor]]]:
    net = MaskedNetwork(module)
    for task, method in METHODS.items():
        net.add_task(task, method())
        shake(net.state(task).masks.parameters())
        net.freeze_task(task)
    deployed, tasks = net.deploy(), list(METHODS)

    def cycle(index: int) -> None:
        deployed.activate(tasks[index % len(tasks)])
        deployed.deactivate()

    return cycle, lambda: dict(deployed.module.named_parameters())


def peft(module: nn.Module, kind: str) -> tuple[Cycle, Callable[[], Mapping[str, Tensor]]]:
    from peft import IA3Config, LoKrConfig, LoraConfig, get_peft_model

    layers = ["0", "2", "4", "7"]
    config = {
        "LoRA": lambda: LoraConfig(target_modules=layers, r=4, lora_alpha=4),
        "DoRA": lambda: LoraConfig(target_modules=layers, r=4, lora_alpha=4, use_dora=True),
        "LoKr": lambda: LoKrConfig(target_modules=layers, r=4, alpha=4),
        "(IA)³": lambda: IA3Config(target_modules=layers, feedforward_modules=[]),
    }[kind]
    names = [name for name, _ in module.named_parameters()]
    model = get_peft_model(module, config(), adapter_name="a")
    model.add_adapter("b", config())
    adapters = "ab"
    for adapter in adapters:
        model.set_adapter(adapter)
        shake(p for p in model.parameters() if p.requires_grad)

    def cycle(index: int) -> None:
        model.set_adapter(adapters[index % 2])
        model.merge_adapter()
        model.unmerge_adapter()

    def weights() -> dict[str, Tensor]:
        found = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in model.named_parameters()}
        return {name: found[name] for name in names}

    return cycle, weights


def lycoris(module: nn.Module, kind: str) -> tuple[Cycle, Callable[[], Mapping[str, Tensor]]]:
    from lycoris import LycorisNetwork, create_lycoris

    LycorisNetwork.apply_preset({"target_name": ["0", "2", "4", "7"]})
    algorithm = {"LoRA": "lora", "LoKr": "lokr"}[kind]
    adapters = []
    for _ in "ab":
        adapter = create_lycoris(module, 1.0, linear_dim=4, linear_alpha=4, algo=algorithm)
        for layer in adapter.loras:
            shake(layer.parameters())
        adapters.append(adapter)

    def cycle(index: int) -> None:
        adapter = adapters[index % 2]
        adapter.merge_to(1.0)
        adapter.merge_to(-1.0)

    return cycle, lambda: dict(module.named_parameters())


def libraries() -> dict[str, Callable[[nn.Module], tuple[Cycle, Callable[[], Mapping[str, Tensor]]]]]:
    runs: dict[str, Callable[[nn.Module], tuple[Cycle, Callable[[], Mapping[str, Tensor]]]]] = {}
    if importlib.util.find_spec("peft"):
        version = importlib.metadata.version("peft")
        for kind in ("LoRA", "DoRA", "LoKr", "(IA)³"):
            runs[f"PEFT {version}, {kind}: merge_adapter, unmerge_adapter"] = lambda m, kind=kind: peft(m, kind)
    if importlib.util.find_spec("lycoris"):
        version = importlib.metadata.version("lycoris-lora")
        for kind in ("LoRA", "LoKr"):
            runs[f"LyCORIS {version}, {kind}: merge_to(1), merge_to(-1)"] = lambda m, kind=kind: lycoris(m, kind)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--short", action="store_true", help="100 cycles, ours alone")
    options = parser.parse_args()
    options.cycles = 100 if options.short else options.cycles
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(environment())
    others = {} if options.short else libraries()
    runs = {f"img2img, {len(METHODS)} tasks of as many methods: activate, deactivate": ours, **others}
    for name, package in (("PEFT", "peft"), ("LyCORIS", "lycoris-lora")):
        if not options.short and not any(run.startswith(name) for run in runs):
            print(f"{name} is not installed and so not measured: pip install {package}")
    for dtype in (torch.float32, torch.bfloat16):
        table = Table(title=f"the backbone after {options.cycles:,} cycles, {dtype}".replace("torch.", ""))
        for column in ("", "values changed", "largest change / mean |W|", "us a cycle"):
            table.add_column(column, justify="left" if not column else "right")
        for title, make in runs.items():
            module = backbone(dtype)
            before = copy.deepcopy(dict(module.named_parameters()))
            cycle, weights = make(module)
            order = random.Random(0)
            start = time.process_time()
            for _ in range(options.cycles):
                cycle(order.randrange(1 << 16))
            seconds = time.process_time() - start
            found = weights()
            assert found.keys() == before.keys()
            changed = sum(int((tensor != before[name]).sum()) for name, tensor in found.items())
            count = sum(tensor.numel() for tensor in before.values())
            largest = max(((t - before[n]).float().abs().max() / before[n].float().abs().mean()).item() for n, t in found.items())
            if make is ours:
                judge(f"share of the values changed, {dtype}", [changed / count], 0.0)
            drift = "0" if changed == 0 else f"{100 * changed / count:.1f} %"
            table.add_row(title, drift, "0" if changed == 0 else f"{largest:.3g}", f"{1e6 * seconds / options.cycles:.0f}")
        console().print(table)
    end()


if __name__ == "__main__":
    main()
