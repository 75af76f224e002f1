"""The errors that a user meets: what was got, what was expected, what to do; and memory that runs out, as one of them."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""

LONGEST = 3000
"""Characters of the longest message. What a message quotes may come from a stranger's file, and be as long as that."""
LONGEST_QUOTED = 300
"""Characters of another library's message that one of ours repeats."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, an image, a label, an option.

    The message always has three parts: what was got, what was expected, and what to do about it. One of more than `LONGEST`
    characters is cut in its middle, since it begins with what was got and ends with what to do.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(shortened(arg) if isinstance(arg, str) else arg for arg in args))


class TrainingDivergedError(RuntimeError):
    """A loss is no longer a number."""


class OutOfMemoryError(MemoryError):
    """Something does not fit into memory; the message names what to lower."""


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text` with its middle cut out where it has more than `longest` characters, and with nothing that no output can encode."""
    if len(text) > longest:
        half = (longest - 40) // 2
        text = f"{text[:half]} … ({len(text) - 2 * half} characters) … {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, cut where it is very long; the error's type where none does."""
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), type(error).__name__)
    return line if len(line) <= LONGEST_QUOTED else line[:LONGEST_QUOTED] + " …"


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
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # where nothing has loaded it, nothing of it ran out of memory
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
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
