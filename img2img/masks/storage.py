"""One `safetensors` file a task: coded masks, norm state, head, and a header that binds them to their backbone.

Tensors are named `mask/<weight>/<part>`, `norm/<name>` and `head/<name>`. Of the parts of masks, bool and uint8 ones are coded
(`coding.encode`), and the header says of which type and shape they are. The header is JSON in the file's metadata; it carries
a SHA-256 over everything else in the file, so that any change is noticed. It is no proof against someone who computes it anew:
nothing that the file says is trusted further than it can be checked, and nothing in it is ever run.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import img2img.masks.coding as coding
from img2img.errors import InputError
from img2img.files.paths import expanded
from img2img.masks.basis import Basis
from img2img.masks.file_header import checksum, refusing
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.task_header import parse_header
from img2img.masks.tensors import total_bytes


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a task file, its types checked. The tensors are not read, so the checksum is not verified.

    Raises:
        InputError: there is no such file, or it is cut off, of another kind, or of another format version.
    """
    path = _existing(path)
    with path.open("rb") as file:
        return parse_header(path, file, path.stat().st_size)


def read_task_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and tensors of a task file as they are stored, the checksum verified.

    Raises:
        InputError: there is no such file, or it is damaged, of another kind, or of another format version.
    """
    path = _existing(path)
    blob = path.read_bytes()
    header = parse_header(path, io.BytesIO(blob), len(blob))
    with refusing(f"{path} is damaged"):
        tensors = safetensors.torch.load(blob)
        intact = header["checksum"] == checksum(header, tensors)
    if not intact:
        raise InputError(f"{path} was changed after it was written (checksum differs): copy it again from where it came from")
    # A bool that is neither 0 nor 1 would count differently from one kernel to the next.
    return header, {name: t.view(torch.uint8) != 0 if t.dtype == torch.bool else t for name, t in tensors.items()}


def check_backbone(path: str | os.PathLike[str], header: Mapping[str, Any], backbone: FrozenBackbone) -> None:
    """Raise an `InputError` unless the task file is for `backbone`, such as a `MaskedNetwork`."""
    if header["backbone_sha256"] != backbone.backbone_sha256:
        raise InputError(
            f"{path} belongs to the backbone {header['backbone_sha256'][:12]}…, this network's is "
            f"{backbone.backbone_sha256[:12]}…: load the backbone that the task was trained on"
        )


def _existing(path: str | os.PathLike[str]) -> Path:
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no task file at {path}; check the path")
    return path


def check_basis(path: Path, header: Mapping[str, Any], bases: Mapping[str, Basis]) -> None:
    """Raise an `InputError` unless `bases` has the one whose masks the task file combines, if it combines any."""
    if header["basis"] is None:
        return
    name, sha256 = header["basis"]["name"], header["basis"]["sha256"]
    if name not in bases:
        raise InputError(
            f"{path} combines the masks of the basis {name!r} ({sha256[:12]}…), which this network does not have (it has "
            f"{list(bases)}): add_basis it first"
        )
    if bases[name].sha256 != sha256:
        raise InputError(
            f"{path} combines the masks of the basis {name!r} {sha256[:12]}…, this network's of that name is "
            f"{bases[name].sha256[:12]}…: add the basis that the task was trained with"
        )


def storage_table(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What takes how much room in a task file: a row for each part of each mask, and one each for norm state, head and the rest.

    Returns:
        Rows of `weight` (its name; or "(norm)", "(head)", "(header)"), `part`, `weights` (how many the layer has), `bytes`,
        `bits_per_weight`, `entropy_per_weight` (the ideal for the coder, see `coding.entropy_bits`; for what is not coded, as
        stored; both None where there are no weights) and `coder` ("plain", "range", "relative", or "raw" for what is not coded).
        The bytes of all rows are the file's.
    """
    path = expanded(path)
    header, tensors = read_task_file(path)
    rows = []
    others = dict.fromkeys(("norm", "head"), 0)
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        size = total_bytes({key: tensor})
        if kind != "mask":
            others[kind] = others.get(kind, 0) + size
            continue
        weight, _, part = name.rpartition("/")
        entry, weights = header["coded"].get(key), header["storage"]["layers"].get(weight, 0)
        entropy = 8 * size if entry is None else entry["entropy_bits"]
        rows.append(
            {
                "weight": weight,
                "part": part,
                "weights": weights,
                "bytes": size,
                "bits_per_weight": 8 * size / weights if weights else None,
                "entropy_per_weight": entropy / weights if weights else None,
                "coder": "raw" if entry is None else coding.coder(tensor),
            }
        )
    others["header"] = path.stat().st_size - total_bytes(tensors)
    no_weights = {"part": "", "weights": 0, "bits_per_weight": None, "entropy_per_weight": None, "coder": "raw"}
    return rows + [{"weight": f"({kind})", "bytes": size, **no_weights} for kind, size in others.items()]
