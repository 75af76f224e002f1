"""The error that a user's input raises: what was got, what was expected, what to do."""

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a picture, a label, an option.

    The message always has three parts: what was got, what was expected, and what to do about it.
    """
