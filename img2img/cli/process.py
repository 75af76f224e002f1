"""How the processes of commands and pipelines allocate memory, and wait for each other's threads."""

import ctypes
import os

_SPINS = "10000"
"""Some 0.15 ms, longer than what lies between most operations; the default of 300,000 was 4 ms where it was measured."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt` in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let malloc keep large blocks that are freed, for the next ones.

    A training step allocates and frees tensors of the network's size many times. By default glibc returns each to the system,
    and the next one is made of new pages, which the kernel has to clear: 4 to 19 % of a step's processor time. The process then
    holds its peak of memory until it ends. Where malloc is another one, or a `MALLOC_` variable is set, nothing is done.
    """
    if os.name != "posix" or any(key.startswith("MALLOC_") for key in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def bound_spinning() -> None:
    """Let threads that wait for each other spin for a short time before they sleep. Call it before torch is imported.

    An operation's threads wait for the slowest of them, and for the next operation. GNU's OpenMP, which PyTorch's packages for
    Linux bring, lets them spin meanwhile. Where other processes use the cores too, that takes the time from the very threads that
    are waited for. Sleeping at once (OMP_WAIT_POLICY=passive) costs an idle machine some 8 % of a step. Where the user has set
    either variable, nothing is done; other implementations of OpenMP know neither.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS
