"""Jobs as jobs of Slurm, through submitit, or as processes of this machine by submitit's local executor."""

import time
from pathlib import Path
from typing import Any

from img2img.errors import InputError, first_line
from img2img.extras import require
from img2img.launch.execute import execute
from img2img.launch.jobs import JOBS, Ended, Job
from img2img.launch.store import Store
from img2img.training.config.launcher import SlurmOptions


class SlurmLauncher:
    """Each job is one of Slurm's. One that is lost, or reaches its time limit, is started again by `run_jobs`.

    Args:
        options: of `launcher=slurm`.

    Raises:
        InputError: submitit is not installed, or there is no Slurm here.
    """

    def __init__(self, options: SlurmOptions) -> None:
        self._submitit = require("submitit", extra="slurm", what="launcher=slurm")
        self._options = options
        self._jobs: dict[str, Any] = {}
        self._executors: dict[Path, Any] = {}

    def close(self) -> None:
        """End what still runs."""
        for job in self._jobs.values():
            job.cancel()

    def submit(self, job: Job, attempt: int) -> None:
        """See `Launcher`. Jobs of a launch that was killed may still run, so that a first one has to find the folder free."""
        store = Store(job.root)
        folder = Path(job.cwd) / ".submitit" if store.remote else store.path(JOBS) / ".submitit"
        if folder not in self._executors:
            self._executors[folder] = self._executor(folder)
        self._jobs[job.name] = self._executors[folder].submit(execute, job, attempt > 0)

    def wait(self, seconds: float) -> list[Ended]:
        """See `Launcher`."""
        until = time.monotonic() + seconds
        while not (done := [name for name, job in self._jobs.items() if job.done()]) and time.monotonic() < until:
            time.sleep(0.2)
        return [self._ended(name, self._jobs.pop(name)) for name in done]

    def _ended(self, name: str, job: Any) -> Ended:
        errors = self._submitit.core.utils
        try:
            return Ended(name, job.result())
        except errors.FailedJobError as error:  # raised outside of what `execute` catches, such as an import
            return Ended(name, str(error))
        except errors.UncompletedJobError as error:
            return Ended(name, first_line(error), lost=True)

    def _executor(self, folder: Path) -> Any:
        options = self._options
        try:
            executor = self._submitit.AutoExecutor(folder=folder, cluster=options.cluster)
        except RuntimeError as error:
            raise InputError(f"launcher=slurm: {first_line(error)}; start it where sbatch is") from error
        needs: dict[str, Any] = {"name": "img2img", "timeout_min": options.minutes, "cpus_per_task": options.cpus}
        if options.gpus:
            if options.gpus != int(options.gpus):
                raise InputError(f"launcher.gpus={options.gpus}: Slurm gives whole GPUs; expected a whole number")
            needs["gpus_per_node"] = int(options.gpus)
        if options.memory is not None:
            needs["mem_gb"] = options.memory
        if options.partition is not None:
            needs["slurm_partition"] = options.partition
        if options.parameters:
            needs["slurm_additional_parameters"] = dict(options.parameters)
        executor.update_parameters(**needs)
        return executor
