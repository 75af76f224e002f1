"""What a task made of an image, as a file."""

from pathlib import Path
from typing import Any

from img2img.files.atomic import write_atomic
from img2img.files.json_files import write_json
from img2img.files.writable import ends_all


def write_result(path: Path, result: Any) -> OSError | None:
    """Write an image as PNG, or scores as JSON; the error where that cannot be.

    Raises:
        OSError: one that would end every other file as well, such as a full disk.
    """
    try:
        if isinstance(result, dict):
            write_json(path, result)
        else:
            write_atomic(path, lambda temporary: result.save(temporary, format="PNG"))
    except OSError as error:
        if ends_all(error):
            raise
        return error
    return None
