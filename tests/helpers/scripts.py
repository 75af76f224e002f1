"""A script of `pipelines/` or a command of `img2img` in this process: a new one takes five seconds to import its libraries."""

import contextlib
import io
import logging
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How it ended: the exit code of a shell, and what it printed."""

    code: int
    stdout: str
    stderr: str


def run_script(name: str, *arguments: object) -> Done:
    """`python pipelines/NAME.py ARGUMENTS`, from the repository's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return _run(str(ROOT / "pipelines" / f"{name}.py"), arguments)


def run_command(*arguments: object) -> Done:
    """`img2img ARGUMENTS`, from the working directory."""
    return _run(str(ROOT / "img2img" / "__main__.py"), arguments)


def _run(script: str, arguments: tuple[object, ...]) -> Done:
    out, error, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, _as_before(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:  # as the interpreter takes it
            if isinstance(ended.code, str):
                error.write(f"{ended.code}\n")
            code = int(bool(ended.code)) if ended.code is None or isinstance(ended.code, str) else ended.code
    return Done(code, out.getvalue(), error.getvalue())


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Hydra's state and the handlers of the log are of one process: those of this one come back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hydra = dict(Singleton._instances)  # a job of a multirun puts others in their place
    config = HydraConfig.instance().cfg
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        Singleton._instances.clear()
        Singleton._instances.update(hydra)
        HydraConfig.instance().cfg = config
        GlobalHydra.instance().clear()
        root.handlers[:] = handlers
        root.setLevel(level)
