"""Ordinary networks of single tasks, for a model that merges the weights of each task that it runs."""

from collections import OrderedDict
from threading import Lock
from typing import Any

from torch import nn

from img2img.masks import MaskedNetwork
from img2img.masks.tensors import total_bytes

MERGED_BYTES = 2 << 30
"""Bytes that the kept networks take at most, where no other bound is given; the one used last is always kept."""


class MergedNetworks:
    """Merged networks by task, made when they are first used; the least recently used ones are dropped beyond a bound.

    It may be used from several threads: while one waits for its network to be made, the others get theirs. Pickled, it leaves the
    merged networks out; they are made again.

    Args:
        network: holds the tasks.
        limit: the bound in bytes.

    Attributes:
        hits: how often a network was there.
        misses: how often it had to be made.
    """

    def __init__(self, network: MaskedNetwork, limit: int = MERGED_BYTES) -> None:
        self._network, self._limit = network, limit
        self._by_task: OrderedDict[str, nn.Module] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._making: dict[str, Lock] = {}
        self._lock = Lock()
        self.hits = self.misses = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self._network, "limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __getitem__(self, task: str) -> nn.Module:
        with self._lock:
            if task in self._by_task:
                self.hits += 1
                self._by_task.move_to_end(task)
                return self._by_task[task]
            making = self._making.setdefault(task, Lock())
        with making:  # another thread may be making it
            with self._lock:
                merged = self._by_task.get(task)
            if merged is None:
                merged = self._network.merge(task)
                self._keep(task, merged)
        return merged

    def _keep(self, task: str, merged: nn.Module) -> None:
        size = total_bytes(merged.state_dict())
        with self._lock:
            self.misses += 1
            self._making.pop(task, None)
            self._by_task[task], self._bytes[task] = merged, size
            while len(self._by_task) > 1 and self._total() > self._limit:
                oldest, _ = self._by_task.popitem(last=False)
                del self._bytes[oldest]

    def drop(self, task: str) -> None:
        """Forget the network of `task`, which has gone or changed."""
        with self._lock:
            self._by_task.pop(task, None)
            self._bytes.pop(task, None)

    def bytes(self) -> int:
        """Bytes of the networks that are kept."""
        with self._lock:
            return self._total()

    def _total(self) -> int:
        return sum(self._bytes.values())
