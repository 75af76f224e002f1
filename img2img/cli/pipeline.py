"""What the scripts in `pipelines/` share: from a composed config to a run, with a user's mistakes as one message.

What a run needs is imported when it starts: how threads wait is settled before torch is loaded.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from img2img.cli.output import USER_ERRORS, one_message
from img2img.cli.process import bound_spinning, keep_freed_memory
from img2img.errors import InputError

if TYPE_CHECKING:
    from img2img.training.run_folder import SavedConfig

_AFTER_THE_FIRST = 3.0
"""Seconds that all processes but the first wait before they report an error: where all meet the same, it alone is heard, since
the launcher ends the others when one has failed."""


_STARTED = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}
"""Variables of torchrun's and Slurm's processes."""

_FULL_ERROR = "HYDRA_FULL_ERROR"


@contextmanager
def _ending() -> Iterator[None]:
    """End with one message where the block raises an error that the user can correct; the first process is the first to."""
    with one_message(interrupted="interrupted: the same command goes on from what was saved last"):
        try:
            yield
        except USER_ERRORS:
            if _number():
                time.sleep(_AFTER_THE_FIRST)
            raise


@contextmanager
def job_errors() -> Iterator[None]:
    """`_ending` for a job; in a multirun an error goes on to Hydra, which lets the other jobs end before `start` reports it."""
    if in_multirun():
        yield
    else:
        with _ending():
            yield


def _number() -> int:
    """Which one of the processes that train together this is, 0 for the first, as torchrun, srun or Fabric says it."""
    return max(int(os.environ.get(key, "0")) for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def in_multirun() -> bool:
    """Whether this is one of the jobs of Hydra's `--multirun`."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def start(main: Callable[[], object], *, experiment: bool = True) -> None:
    """Call a script's function that Hydra has decorated; a config that cannot be composed is one message.

    Args:
        main: the function.
        experiment: its config is an experiment's, whose keys are checked.
    """
    keep_freed_memory()
    bound_spinning()
    with _ending():
        from img2img.training.compose import composition_error, register_defaults
        from img2img.training.config_files import config_folders
        from img2img.training.overrides import check_overrides

        check_overrides(sys.argv[1:], experiment=experiment)
        register_defaults(config_folders(sys.argv[1:]))
        before = os.environ.get(_FULL_ERROR)
        os.environ[_FULL_ERROR] = "1"  # Hydra then raises what it would print
        try:
            main()
        except HydraException as error:
            raise composition_error(error) from error
        finally:
            if before is None:
                del os.environ[_FULL_ERROR]


def run_config(config: DictConfig, *, then: Callable[[Any, Mapping[str, Any]], object] | None = None) -> None:
    """Resolve a config and run its experiment, see `img2img.api.run`.

    Each job of a multirun gets the folder that Hydra has for it, `out/NUMBER`, and shows no bars, which would mix with others'.
    """
    from img2img.training.compose import ENDING

    with job_errors():
        if ENDING in config:
            raise InputError(f"the key {ENDING} is of pipelines/decathlon.py alone: leave it out")
    _run(config, then)


def _run(config: DictConfig, then: Callable[[Any, Mapping[str, Any]], object] | None) -> None:
    from img2img.api import run
    from img2img.launch.store import is_remote
    from img2img.training.compose import plain_config

    with job_errors():
        plain = plain_config(config)
        if config.get("launcher") is not None:
            _launch(plain, config, then)
            return
        if is_remote(plain["out"]):
            raise InputError(
                f"out={plain['out']} is no folder: expected one, or a launcher, which copies into a bucket: launcher=ray"
            )
        if not in_multirun():
            run(plain, composed=_composed(config), then=then)
            return
        if (devices := plain.get("device", {}).get("devices", 1)) != 1 and not _STARTED & os.environ.keys():
            raise InputError(
                f"device.devices={devices} in a multirun, whose jobs cannot start processes: leave it out, or use torchrun "
                "or a launcher that starts them, see docs/guides/devices.md"
            )
        run(plain | {"out": HydraConfig.get().runtime.output_dir}, composed=_composed(config), then=then, bars=False)


def _launch(plain: Mapping[str, Any], config: DictConfig, then: Callable[[Any, Mapping[str, Any]], object] | None) -> None:
    """Run the experiment by the config's launcher, its tasks side by side, see `img2img.launch`."""
    from img2img.launch.jobs import jobs_of
    from img2img.launch.scheduler import check_finished, run_jobs
    from img2img.training.config.launcher import read_launcher

    given = OmegaConf.to_container(config.launcher, resolve=True)
    assert isinstance(given, dict)
    options = read_launcher({str(key): value for key, value in given.items()})
    if in_multirun():
        plain = {**plain, "out": HydraConfig.get().runtime.output_dir}
    composed = _composed(OmegaConf.masked_copy(config, [str(key) for key in config if key != "launcher"]))
    jobs = jobs_of(plain, threads=options.cpus, composed=composed, then=then)
    check_finished(run_jobs(jobs, options), jobs)


def run_decathlon(config: DictConfig) -> None:
    """Run the experiment of the config, then score it and write the challenge server's file where its images are there.

    `imagenet12_accuracy` of the config is the given network's, see `img2img.research.decathlon.check_given`.
    """
    from img2img.research.decathlon import ending
    from img2img.training.compose import ENDING, plain_config

    with job_errors():
        then = ending(config.get(ENDING), plain_config(config))
    _run(config, then)


def run_study(config: DictConfig) -> None:
    """Run the study of the config, see `img2img.research.impresslearn`."""
    from img2img.research.impresslearn import run
    from img2img.training.compose import plain_config
    from img2img.training.distributed import refuse_several_processes

    with job_errors():
        refuse_several_processes("ImpressLearn's study")
        if config.get("launcher") is not None:
            raise InputError("ImpressLearn's study runs in one process: leave launcher out")
        run(plain_config(config), composed=_composed(config))


def _composed(config: DictConfig) -> "SavedConfig":
    """What the run folder keeps; with interpolations, so that a path shows which data it is from."""
    from img2img.training.run_folder import SavedConfig

    overrides = OmegaConf.to_yaml(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None
    return SavedConfig(OmegaConf.to_yaml(config), overrides)
