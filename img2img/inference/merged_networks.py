"""Ordinary networks of single tasks, for a model that merges the weights of each task that it runs."""

from collections import OrderedDict
from threading import Lock
from typing import Any

from torch import nn

from img2img.masks import MaskedNetwork
from img2img.masks.tensors import total_bytes

MERGED_BYTES = 2 << 30
"""Bytes that the kept networks take at most; the one used last is always kept."""


class MergedNetworks:
    """Merged networks by task, made when they are first used; the least recently used ones are dropped beyond `MERGED_BYTES`.

    It may be used from several threads. Pickled, it leaves the merged networks out; they are made again.

    Args:
        network: holds the tasks.
    """

    def __init__(self, network: MaskedNetwork) -> None:
        self._network = network
        self._by_task: OrderedDict[str, nn.Module] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_network": self._network}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_network"])  # type: ignore[misc]

    def __getitem__(self, task: str) -> nn.Module:
        with self._lock:
            if task not in self._by_task:
                self._by_task[task] = self._network.merge(task)
            self._by_task.move_to_end(task)
            merged = self._by_task[task]
            while len(self._by_task) > 1 and self._bytes() > MERGED_BYTES:
                self._by_task.popitem(last=False)
        return merged

    def _bytes(self) -> int:
        return sum(total_bytes(merged.state_dict()) for merged in self._by_task.values())
