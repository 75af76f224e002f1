"""What a number was measured on: commit, hardware, versions."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment(*, processes: int = 1, precision: str | None = None) -> dict[str, Any]:
    """What a number was measured on: commit, hardware, versions; and how many processes trained together, in which precision.

    `commit` is None unless this package's files are in a git repository and under its control: an installed package may lie in
    a folder of somebody else's.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    found = {"commit": commit_of(Path(__file__)), "device": device, **versions, "processes": processes}
    return found if precision is None else found | {"precision": precision}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit_of(file: Path) -> str | None:
    """The commit of the repository that controls `file`, and whether something in it has changed since; None where none does."""
    folder = file.resolve().parent
    # A hook's variables, such as GIT_DIR, would name the repository that the hook runs in.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None  # installed without its repository
    return commit + (" (with uncommitted changes)" if changed else "")
