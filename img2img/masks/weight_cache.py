"""Effective weights kept for evaluation, bounded in bytes."""

from collections import OrderedDict

from torch import Tensor

from img2img.masks.tensors import total_bytes

Version = tuple[int, ...]


class WeightCache:
    """The effective weights of the tasks used last, each valid for one version of the task's masks.

    Args:
        limit: the bound in bytes; the least recently used task is dropped first, and one that is larger is never kept.

    Attributes:
        hits: how often `get` found what it was asked for.
        misses: how often it did not.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = 0
        self._entries: OrderedDict[str, tuple[Version, dict[str, Tensor]]] = OrderedDict()

    def get(self, task: str, version: Version) -> dict[str, Tensor] | None:
        """What is kept of `task`, if it is of this version."""
        if task not in self._entries or self._entries[task][0] != version:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(task)
        return self._entries[task][1]

    def put(self, task: str, version: Version, weights: dict[str, Tensor]) -> None:
        """Keep the effective weights of `task`, as far as the bound allows."""
        self.drop(task)
        if total_bytes(weights) <= self.limit:
            self._entries[task] = (version, weights)
        while self.bytes() > self.limit:
            self._entries.popitem(last=False)

    def drop(self, task: str) -> None:
        """Forget `task`."""
        self._entries.pop(task, None)

    def tasks(self) -> tuple[str, ...]:
        """The tasks kept, the one used last at the end."""
        return tuple(self._entries)

    def bytes(self) -> int:
        """Bytes of the effective weights kept."""
        return sum(total_bytes(weights) for _, weights in self._entries.values())
