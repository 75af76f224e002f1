"""What a number was measured on: commit, hardware, versions."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(*, processes: int = 1) -> dict[str, Any]:
    """What a number was measured on: commit, hardware, versions; and how many processes trained together."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"commit": _commit(), "device": device, **versions, "processes": processes}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None  # installed without its repository
    return commit + (" (with uncommitted changes)" if changed.strip() else "")
