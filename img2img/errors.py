"""The error that a user's input raises: what was got, what was expected, what to do."""

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""

LONGEST = 3000
"""Characters of the longest message. What a message quotes may come from a stranger's file, and be as long as that."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a picture, a label, an option.

    The message always has three parts: what was got, what was expected, and what to do about it. One of more than `LONGEST`
    characters is cut in its middle, since it begins with what was got and ends with what to do.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(shortened(arg) if isinstance(arg, str) else arg for arg in args))


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text` with its middle cut out where it has more than `longest` characters, and with nothing that no output can encode."""
    if len(text) > longest:
        half = (longest - 40) // 2
        text = f"{text[:half]} … ({len(text) - 2 * half} characters) … {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()
