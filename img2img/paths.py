"""The one way in which a path that a user gave is read."""

import os
from pathlib import Path

from img2img.errors import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` at its start as the user's home folder, and `~name` as that of another user who has one.

    A file's name that only begins with `~`, as programs name their drafts, stays as it is.

    Raises:
        InputError: it begins with `~/`, and nothing says where this account's home folder is.
    """
    found = Path(os.path.expanduser(os.fsdecode(path)))
    if found.parts[:1] == ("~",):
        raise InputError(f"{found}: this account has no home folder, so ~ means nothing: give the whole path, or set HOME")
    return found
