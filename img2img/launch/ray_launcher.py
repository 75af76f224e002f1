"""Jobs as tasks of a Ray cluster, or of a Ray that is started for them on this machine."""

import os
from collections.abc import Mapping
from typing import Any

from img2img.errors import InputError, first_line
from img2img.extras import require
from img2img.launch.execute import execute
from img2img.launch.jobs import Ended, Job
from img2img.training.config.launcher import RayOptions

GB = 2**30


def connected(address: str | None, *, what: str) -> tuple[Any, bool, bool]:
    """Ray, connected to a cluster, or started on this machine alone. Nothing is reported to Ray's makers.

    Args:
        address: of the cluster's head, HOST:PORT or "auto" for the one of this machine; None: that of the variable RAY_ADDRESS;
            where it is not set, Ray is started on this machine.
        what: what needs it, for the message.

    Returns:
        Ray's module; whether the connection was made here, so that it is to be closed by `shutdown`; whether Ray was started with
        it, and ends with it.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    ray = require("ray", extra="ray", what=what)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        return ray, False, False
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster at {address} ({first_line(error)}): start one (ray start --head), give its address, or leave the "
            "address out to use this machine"
        ) from error
    return ray, True, address == "local"


def processes_for(there: Mapping[str, float], gpus: float | None) -> tuple[float, int]:
    """The GPUs of a process that holds a model, and how many such processes a cluster has room for, one at least.

    Args:
        there: the cluster's resources, as Ray names them.
        gpus: of a process; None: one where the cluster has any.

    Raises:
        InputError: GPUs are asked for, and the cluster has none.
    """
    if gpus is None:
        gpus = 1 if there.get("GPU") else 0
    if gpus and not there.get("GPU"):
        raise InputError(f"--gpus {gpus:g}: the cluster has no GPU; leave it out, or add a machine that has one")
    return gpus, max(1, int(there["GPU"] / gpus if gpus else there.get("CPU", 1)))


class RayLauncher:
    """Each job is a Ray task in a process that ends with it. Ray does not start it again: `run_jobs` does.

    Args:
        options: of `launcher=ray`.
        cpu_only: no job uses a GPU.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or this machine has less than a job needs.
    """

    def __init__(self, options: RayOptions, *, cpu_only: bool = False) -> None:
        self._options, self._cpu_only = options, cpu_only
        self._names: dict[Any, str] = {}
        ray, self._started, local = connected(options.address, what="launcher=ray")
        self._ray = ray
        try:
            needs = self._needs(local=local)
        except BaseException:
            self.close()
            raise
        # A process for each job: it leaves no memory, no threads and no modules of a user to the next.
        self._task = ray.remote(max_calls=1, max_retries=0, **needs)(execute)

    def _needs(self, *, local: bool) -> dict[str, Any]:
        """Of one job, as Ray names it."""
        options, there = self._options, self._ray.cluster_resources()
        gpus = options.gpus
        if gpus is None:
            gpus = 1 if there.get("GPU") and not self._cpu_only else 0
        needs: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": gpus}
        if options.memory is not None:
            needs["memory"] = int(options.memory * GB)
        for option, key, resource in (("cpus", "num_cpus", "CPU"), ("gpus", "num_gpus", "GPU"), ("memory", "memory", "memory")):
            if local and needs.get(key, 0) > there.get(resource, 0):  # to a cluster machines may come
                has = there.get(resource, 0) / (GB if key == "memory" else 1)
                raise InputError(f"launcher.{option}={getattr(options, option)}: this machine has {has:.4g}; give less")
        return needs

    def close(self) -> None:
        """End what still runs, and the Ray that was started for it."""
        for reference in self._names:
            self._ray.cancel(reference, force=True)
        if self._started:
            self._ray.shutdown()

    def submit(self, job: Job, attempt: int) -> None:
        """See `Launcher`. Ray ends the tasks of a launch with it, so that a job's own folder is nobody else's."""
        sole = attempt > 0 or job.kind == "task"
        self._names[self._task.options(name=f"img2img {job.name}").remote(job, sole)] = job.name

    def wait(self, seconds: float) -> list[Ended]:
        """See `Launcher`."""
        ready, _ = self._ray.wait(list(self._names), timeout=seconds)
        return [self._ended(reference) for reference in ready]

    def _ended(self, reference: Any) -> Ended:
        name = self._names.pop(reference)
        try:
            return Ended(name, self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:  # raised outside of what `execute` catches, such as an import
            return Ended(name, str(error))
        except self._ray.exceptions.RayError as error:
            return Ended(name, f"{type(error).__name__}: {first_line(error)}", lost=True)
