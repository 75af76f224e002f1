"""The error that a user's input raises: what was got, what was expected, what to do."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a picture, a label, an option.

    The message always has three parts: what was got, what was expected, and what to do about it.
    """
