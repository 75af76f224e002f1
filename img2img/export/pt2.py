"""A task as a `torch.export` program, `.pt2`: `torch.export.load(path).module()(images)` needs torch and nothing else."""

import io
import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from img2img.export.check import Agreement, check_agreement
from img2img.export.graph import Interface, TaskGraph
from img2img.files.atomic import write_bytes

EXTRA = "img2img.json"
"""The file inside the archive that says what the program takes and gives."""


def write_pt2(path: Path, program: ExportedProgram, graph: TaskGraph, interface: Interface) -> tuple[Agreement, Interface]:
    """Write the program, read it again and compare it with `graph`; also returns the interface with its own `min_size`.

    Raises:
        InputError: what was read again does not agree.
    """
    if interface.size is None and not _takes(program, interface.min_size):
        interface = interface.at_least(interface.min_size + interface.stride)
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={EXTRA: json.dumps(interface.values)})
    blob = archive.getvalue()
    again = torch.export.load(io.BytesIO(blob)).module()
    found = check_agreement(again, graph, interface.shapes(), what=path.name, by_torch=True)
    write_bytes(path, blob)
    return found, interface


@torch.no_grad()
def _takes(program: ExportedProgram, size: int) -> bool:
    """Whether the program runs on images of that size: some were recorded on the assumption that no map has one pixel."""
    try:
        program.module()(torch.zeros(1, 3, size, size, dtype=torch.float32))
    except AssertionError:  # of the guards that torch.export wrote
        return False
    return True
