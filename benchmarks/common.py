"""What the benchmarks share: alternating rounds, medians, ratios to a named peer taken in the same run, goals.

    make bench
    python benchmarks/common.py small_images disk

runs the short forms of all benchmarks, or of those named, and fails when a ratio is worse than it may be, see `judge`.
"""

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment() -> str:
    """One line: commit, hardware, threads, versions."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    versions = f"CPython {platform.python_version()}, torch {torch.__version__}"
    return f"commit {commit}, {name}, {torch.get_num_threads()} threads, {versions}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def clock() -> float:
    """Seconds: processor time of one thread on a CPU, which other work on the machine hardly changes; else the time of day."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def alternate(functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of `clock` of each function, by round.

    Every round runs all of them once, so that noise of the machine hits all alike.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            gc.disable()
            synchronise()
            start = clock()
            function()
            synchronise()
            times[name].append(clock() - start)
            gc.enable()
    return times


def per_round(times: Mapping[str, Sequence[float]], name: str, peer: str) -> list[float]:
    """The ratios of one's times to its peer's, round by round."""
    return [a / b for a, b in zip(times[name], times[peer], strict=True)]


def ratio(seconds: list[float], peer: list[float]) -> float:
    """The median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(seconds, peer, strict=True))


def report(title: str, times: Mapping[str, list[float]], *, peers: list[str]) -> None:
    """Print medians, the fastest, and the median of the ratios to each peer, round by round."""
    table = Table(title=title)
    for column in ("", "median ms", "min ms", *(f"/ {peer}" for peer in peers)):
        table.add_column(column, justify="left" if not column else "right")
    for name, seconds in times.items():
        ratios = [ratio(seconds, times[peer]) for peer in peers]
        table.add_row(
            name, f"{statistics.median(seconds) * 1e3:.2f}", f"{min(seconds) * 1e3:.2f}", *(f"{ratio:.3f}" for ratio in ratios)
        )
    console().print(table)


def console() -> Console:
    return Console(width=130)


_worse: list[str] = []


def judge(what: str, ratios: Sequence[float], goal: float, *, known: float | None = None) -> None:
    """Print a ratio to its peer beside its goal; `end` fails if it is worse.

    The ratio is the median over the rounds, its noise half of their interquartile range. It is worse when it is above the goal
    by more than the noise. A goal that is known to be missed is judged by `known` in its place, the ratio that was last measured:
    what fails is then a step back.

    Args:
        what: names it and its peer.
        ratios: by round; one number where nothing is left to chance.
        goal: the largest ratio that is wanted.
        known: measured and above the goal.
    """
    middle, noise = statistics.median(ratios), 0.0
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4)
        noise = (high - low) / 2
    limit = goal if known is None else known
    verdict = "reached" if middle <= goal else "within the noise" if middle <= goal + noise else "missed, as known"
    if middle > limit + noise:
        verdict = "WORSE"
        _worse.append(what)
    missed = "" if known is None else f", known to be {known:g}"
    print(f"{what}: {middle:.3f} ± {noise:.3f} (goal {goal:g}{missed}): {verdict}", flush=True)


def end() -> None:
    """Exit with an error if a ratio was worse than it may be."""
    if _worse:
        sys.exit("worse than it may be: " + "; ".join(_worse))


SHORT = (
    "start",
    "training_step",
    "deployment",
    "disk",
    "drift",
    "many_tasks",
    "large_folder",
    "stacked_training",
    "small_images",
    "inference",
)
"""The benchmarks that have a short form."""


def run_short(names: Sequence[str]) -> None:
    """Run short forms, each in a process of its own, and exit with an error if one fails."""
    failed = []
    for name in names:
        began = time.monotonic()
        print(f"--- {name}", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--short"]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"    {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        sys.exit(f"worse, or broken: {', '.join(failed)}")


if __name__ == "__main__":
    run_short(sys.argv[1:] or SHORT)
