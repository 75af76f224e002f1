"""Several processes that train one task together, one for each device: what they share, and which of them writes.

Every process has a copy of whatever is trained, runs its part of each batch, and adds its gradients to those of the others, so
that all copies take the same step. The first process alone measures and writes; the others are told.

Fabric starts the processes and carries their messages. Its wrapper for the module, `DistributedDataParallel`, is left out: it
expects every parameter to get its gradient from the wrapped call and from nowhere else, in every step. Here the head is trained
alone at first, penalties and distillation reach parameters past that call, and networks have parameters that no output depends
on. Adding up the gradients after the backward pass serves all methods alike, by one message; what it gives up is that messages
are sent while the backward pass still runs.
"""

import atexit
import logging
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.extras import version_alone
from img2img.inference.device import chosen_device, computes_bfloat16, warn_of_emulation

with version_alone("torchmetrics"):  # which would load scipy and matplotlib, and take up to two seconds
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""How long a process waits for the others, such as for the first to measure a large test set. Launchers notice one that died."""


class _PlainStrategy(DDPStrategy):
    """Fabric's strategy for several processes, without its wrapper around the module."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        return module


def start_fabric(*, accelerator: str, precision: str, devices: int | str = 1, nodes: int = 1) -> Fabric:
    """Fabric for the processes of this run, which it starts unless a launcher (torchrun, `fabric run`, Slurm's srun) has.

    Args:
        accelerator: Fabric's.
        precision: Fabric's.
        devices: of this machine, a process for each; "auto" for all of its GPUs. A launcher's number goes before 1 and "auto".
        nodes: machines.

    Raises:
        InputError: the launcher started another number of processes, or Fabric refuses the combination.
    """
    if devices == "auto":
        devices = max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    elif not isinstance(devices, int) or devices < 1 or nodes < 1:
        raise InputError(f"devices={devices!r}, nodes={nodes}: expected whole numbers of 1 or more; devices may be 'auto'")
    if torch.distributed.is_torchelastic_launched():
        here, everywhere = (int(os.environ[key]) for key in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        if devices not in (1, here):
            raise InputError(f"devices={devices}, but {here} processes were launched on this machine: leave devices out")
        devices, nodes = here, everywhere // here
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it repeats what the config says
    by_fabric = "LT_CLI_USED" in os.environ  # its options reach Fabric by the environment, and clash with ours
    several = devices * nodes > 1
    try:
        fabric = Fabric(
            accelerator=accelerator,
            strategy=_PlainStrategy(timeout=_PATIENCE) if several else "auto",
            devices="auto" if by_fabric else devices,
            num_nodes=1 if by_fabric else nodes,
            precision=precision,  # type: ignore[arg-type]
        )
        if several and not by_fabric:
            fabric.launch()
        if several or by_fabric:
            atexit.register(_end_messages)
    except (ValueError, RuntimeError, ImportError) as error:
        if not several:
            raise InputError(
                f"accelerator={accelerator!r} with precision={precision!r} cannot be used ({error}): expected what this machine "
                "has and Lightning Fabric knows, such as accelerator=auto precision=32-true; see docs/guides/devices.md"
            ) from error
        raise InputError(f"{devices} devices on {nodes} machines cannot be used ({error}): see docs/guides/devices.md") from error
    return fabric


def training_precision(precision: str, accelerator: str) -> str:
    """Fabric's precision for that of the config, on the device that Fabric will take; see `DeviceOptions`."""
    try:
        device = chosen_device("auto" if accelerator == "gpu" else accelerator)
    except InputError:
        device = torch.device("cpu")  # Fabric refuses it with its own reason
    if precision == "auto":
        return "bf16-mixed" if computes_bfloat16(device) else "32-true"
    if precision.startswith("bf16"):
        warn_of_emulation(device, f"device.precision={precision}", "device.precision=auto takes it where it is fast")
    return precision


def _end_messages() -> None:
    """Join the threads that carry messages: one that still waits for the interpreter when it ends aborts the process.

    Fabric does this for GPUs alone.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """The processes of a run; of one process nothing is ever sent.

    Args:
        fabric: launched.

    Attributes:
        world_size: how many there are.
        rank: which one this is, from 0.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.world_size, self.rank = fabric.world_size, fabric.global_rank

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the one that measures and writes."""
        return self.rank == 0

    def on_rank_zero(self, make: Callable[[], T]) -> T:
        """What `make()` gives in the first process, which alone calls it; the others wait for it."""
        made: Any = make() if self.is_rank_zero else None
        shared: T = made if self.world_size == 1 else self._fabric.broadcast(made)
        return shared

    def each(self, value: T) -> list[T]:
        """The value of every process, in their order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def own_randomness(self) -> None:
        """Let random layers draw other values in each process: all were seeded alike, so that they make the same networks."""
        if not self.is_rank_zero:
            torch.manual_seed(int(torch.randint(1 << 62, ())) + self.rank)

    def share(self, loss: Tensor, count: Tensor | int, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """This process's part of the loss of the whole batch, whose gradients add up to that loss's; and that loss itself.

        The loss of the whole batch is the mean over all that the processes' losses are means over (`Objective.loss_count`), not
        the mean of their losses: of pixels that are not void one process may have more than another.

        Args:
            loss: the mean over this process's part of the batch.
            count: what it is a mean over.
            more: what a method adds to it, which counts as a mean over images: the parts have as many of them.

        Returns:
            Both scalars, the second without history and the same in every process.
        """
        added = torch.zeros_like(loss) if more is None else more
        counted = torch.as_tensor(count, device=loss.device)
        sums = torch.stack([counted.double(), counted * loss.detach().double(), added.detach().double()])
        torch.distributed.all_reduce(sums)
        total = sums[0].clamp(min=1)
        part = loss * (counted / total).to(loss.dtype) + added / self.world_size
        return part, (sums[1] / total + sums[2] / self.world_size).to(loss.dtype)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients."""
        if self.world_size > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            _together(gradients, torch.distributed.all_reduce)

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give every process the tensors of the first."""
        if self.world_size > 1:
            tensors = [*module.parameters(), *module.buffers()]
            _together([t.detach() for t in tensors], lambda flat: torch.distributed.broadcast(flat, 0))

    @torch.no_grad()
    def average_statistics(self, module: nn.Module) -> None:
        """Give every process the mean of all processes' floating-point buffers: running statistics of their parts of the batches.

        Buffers that are equal everywhere, such as those of frozen normalisation, stay as they are to the last bit.
        """
        if self.world_size > 1:
            _together([buffer for buffer in module.buffers() if buffer.is_floating_point()], self._average)

    def _average(self, flat: Tensor) -> None:
        every = [torch.empty_like(flat) for _ in range(self.world_size)]
        torch.distributed.all_gather(every, flat)
        stacked = torch.stack(every)
        flat.copy_(torch.where((stacked == stacked[0]).all(0), stacked[0], stacked.mean(0)))


def _together(tensors: list[Tensor], send: Callable[[Tensor], object]) -> None:
    """Apply `send`, which works in place, to all values of each type as one vector."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in alike])
        send(flat)
        for tensor, values in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(values.view(tensor.shape))


def refuse_several_processes(what: str) -> None:
    """Raise an `InputError` if a launcher started this process as one of several: `what` is a run of one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{what} runs in one process, and {os.environ['WORLD_SIZE']} were launched: start it without torchrun")
