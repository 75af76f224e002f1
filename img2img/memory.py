"""Memory that runs out, of a GPU or of the machine: one error that says what was being done, and what to lower."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class OutOfMemoryError(MemoryError):
    """Something does not fit into memory; the message names what to lower."""


_SAID = (
    "can't allocate memory",  # PyTorch's allocator on a CPU
    "not enough memory",  # the same on Windows
    "out of memory",  # drivers, and MKL and oneDNN
    "std::bad_alloc",
    "alloc_failed",  # cuBLAS and cuDNN
    "failed to allocate",  # OpenCV
    "insufficient memory",
    "could not create a memory",  # oneDNN
)
"""What libraries say in an error that has no type of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, Pillow, OpenCV or PyTorch, on any device, says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # OpenCV's own error is no RuntimeError.
    typed = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return typed and any(said in str(error).lower() for said in _SAID)


@contextmanager
def memory_explained(doing: str, remedy: str | Callable[[], str]) -> Iterator[None]:
    """Raise an `OutOfMemoryError` where the block runs out of memory; one that is raised further inside is passed on as it is.

    Args:
        doing: what the block does, such as "while it was measured".
        remedy: what to lower, with the options' names and values.

    Raises:
        OutOfMemoryError: "out of memory {doing}: {remedy}".
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory {doing}: {remedy if isinstance(remedy, str) else remedy()}") from error
