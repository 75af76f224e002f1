"""The bundle that an experiment takes its backbone from (`backbone.mode=bundle`), and whose tasks new ones may start from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from img2img.bundle import bundle_folder, read_bundle, task_path
from img2img.errors import InputError
from img2img.masks import MaskedNetwork
from img2img.masks.storage import read_header


@dataclass(frozen=True)
class Source:
    """A bundle as its `bundle.json` describes it.

    Attributes:
        folder: the bundle's.
        sha256: of its backbone.
        spec: what builds the backbone.
        select: patterns of the weights that are masked; None for all.
        tasks: the names of its tasks, in order.
        bases: the SHA-256 of each of its bases, by name.
    """

    folder: Path
    sha256: str
    spec: Mapping[str, Any]
    select: Sequence[str] | None
    tasks: tuple[str, ...]
    bases: Mapping[str, str]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The bundle that the options of a backbone name as their `weights`.

        Raises:
            InputError: there is none, or there are options besides, which the bundle settles.
        """
        weights, others = options.get("weights"), sorted(options.keys() - {"mode", "weights"})
        if not isinstance(weights, str) or others:
            raise InputError(
                f"backbone.mode='bundle' got {dict(options)}: expected weights, the folder of a bundle or of a run, and nothing "
                f"else: the bundle says what its backbone is; {f'leave out {others}' if others else 'give backbone.weights'}"
            )
        folder = bundle_folder(weights)
        description = read_bundle(folder)
        select = None if description["select"] == ["*"] else description["select"]
        return cls(folder, description["sha256"], description["spec"], select, tuple(description["tasks"]), description["bases"])

    def fingerprint(self) -> dict[str, Any]:
        """What tells its backbone from others, wherever the folder is."""
        return {"mode": "bundle", "sha256": self.sha256, "spec": dict(self.spec)}

    def checksums(self, tasks: Iterable[str]) -> dict[str, str]:
        """What tells the files of some of its tasks from others."""
        return {task: read_header(task_path(self.folder, task))["checksum"] for task in tasks}

    @contextmanager
    def lent(self, network: MaskedNetwork) -> Iterator[None]:
        """Its tasks are in `network` for the length of the block, read when they are used, but for names that are there already.

        A new task may start from them; they are no part of what the run learns and keeps.
        """
        lent = [name for name in self.tasks if name not in network.tasks()]
        for name in lent:
            network.register_task(task_path(self.folder, name), name=name)
        try:
            yield
        finally:
            for name in lent:
                network.delete_task(name)
