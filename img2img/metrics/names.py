"""The names of a task's metrics: each stands for one number."""

from collections.abc import Iterable, Mapping

from img2img.errors import InputError


def joined(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The values of several metric objects by name.

    Raises:
        InputError: two of them have one name: the second would silently take the place of the first, even of the primary metric.
    """
    values: dict[str, float] = {}
    for part in parts:
        if twice := [name for name in part if name in values]:
            raise InputError(
                f"two metrics of the task are called {', '.join(map(repr, twice))}: expected a name of its own for each; give "
                "yours another"
            )
        values |= part
    return values
