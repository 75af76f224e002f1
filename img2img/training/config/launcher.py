"""What `launcher=NAME` and `launcher.KEY=VALUE` choose: where jobs run, and what each of them needs."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from img2img.errors import InputError
from img2img.validation import Options, checked, did_you_mean


class LauncherOptions(Options):
    """What every launcher has."""

    cpus: int = Field(default=1, ge=1)
    """CPU cores of a job, which are its threads too where `device.threads` is not given."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of a job; parts of one with Ray. None: one where the cluster has any (Ray), none (Slurm)."""
    memory: float | None = Field(default=None, gt=0)
    """GB of main memory of a job; None: not asked for."""
    parallel: int | None = Field(default=None, ge=1)
    """Jobs at a time; None: as many as there is room for."""
    retries: int = Field(default=3, ge=0)
    """How often a job is started again that was lost with its process or machine."""


class RayOptions(LauncherOptions):
    """`launcher=ray`."""

    address: str | None = None
    """Of the cluster's head, HOST:PORT or "auto" for the one of this machine; None: that of the variable RAY_ADDRESS; where it is
    not set, Ray is started on this machine alone, and ended afterwards.
    """


class SlurmOptions(LauncherOptions):
    """`launcher=slurm`, through submitit."""

    partition: str | None = None
    """Slurm's partition; None: its default."""
    minutes: int = Field(default=600, ge=1)
    """Time limit of a job. One that reaches it goes on from its checkpoint in a new one, which counts as a retry."""
    parameters: Mapping[str, Any] = {}
    """Further options of sbatch, such as `{account: mine, constraint: a100}`."""
    cluster: Literal["slurm", "local"] = "slurm"
    """submitit's executor: "local" runs the jobs as processes of this machine."""


LAUNCHERS: Mapping[str, type[LauncherOptions]] = {"ray": RayOptions, "slurm": SlurmOptions}
"""The options of each launcher, by name."""


def read_launcher(given: Mapping[str, Any]) -> LauncherOptions:
    """The options of a config's `launcher`, which holds the launcher's name as `name`.

    Raises:
        InputError: no such launcher, or an option that it does not have.
    """
    options = dict(given)
    name = options.pop("name", None)
    if name not in LAUNCHERS:
        raise InputError(f"launcher={name!r}: {did_you_mean(str(name), list(LAUNCHERS))}expected one of {', '.join(LAUNCHERS)}")
    return checked(LAUNCHERS[name], options, what="launcher")
