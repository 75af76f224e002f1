"""The error that a user's input raises: what was got, what was expected, what to do."""

_LONGEST = 300
"""Characters of another library's message that one of ours repeats."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a picture, a label, an option.

    The message always has three parts: what was got, what was expected, and what to do about it.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything, cut where it is very long; the error's type where none does."""
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), type(error).__name__)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " …"
