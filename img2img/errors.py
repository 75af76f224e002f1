"""The error that a user's input raises: what was got, what was expected, what to do."""

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""

LONGEST = 3000
"""Characters of the longest message. What a message quotes may come from a stranger's file, and be as long as that."""
LONGEST_QUOTED = 300
"""Characters of another library's message that one of ours repeats."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a picture, a label, an option.

    The message always has three parts: what was got, what was expected, and what to do about it. One of more than `LONGEST`
    characters is cut in its middle, since it begins with what was got and ends with what to do.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(shortened(arg) if isinstance(arg, str) else arg for arg in args))


class TrainingDivergedError(RuntimeError):
    """A loss is no longer a number."""


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
