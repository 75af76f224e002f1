"""One `safetensors` file a task: coded masks, norm state, head, and a header that binds them to their backbone.

Tensors are named `mask/<weight>/<part>`, `norm/<name>` and `head/<name>`. Of the parts of masks, bool and uint8 ones are coded
(`coding.encode`), and the header says of which type and shape they are. The header is JSON in the file's metadata; it carries
a SHA-256 over everything else in the file, so that any change is noticed. It is no proof against someone who computes it anew:
nothing that the file says is trusted further than it can be checked, and nothing in it is ever run.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from img2img.errors import InputError
from img2img.files.atomic import write_bytes
from img2img.files.json_files import parse_json
from img2img.files.paths import expanded
from img2img.files.tensors import tensor_bytes
from img2img.files.untrusted import check_plain
from img2img.masks import coding
from img2img.masks.base import build_method
from img2img.masks.bits import pack_bits
from img2img.masks.fitting import fitting, float_type, head_tensors, rebuild_head
from img2img.masks.heads import describe_head
from img2img.masks.task import TaskState, copy_into, total_bytes
from img2img.masks.task_header import CODED, FORMAT, MAX_HEADER, VERSION, parse_header, refusing

if TYPE_CHECKING:
    from img2img.masks.network import MaskedNetwork

MAX_PARTS = 8
"""Coded parts of one mask at most: with the bound on their elements, a small file cannot become a large task."""

MAX_CHAIN = 50
"""Files that are read to read one whose masks are relative to another's, which are relative in turn."""

MAX_OPTIONS = 4096
"""Entries of a list among the options of a mask method at most, such as patterns of weight names."""

# Registered tasks are read when they are used: a circle of references would go on for ever.
_reading: ContextVar[tuple[Path, ...]] = ContextVar("_reading", default=())


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header without its own `checksum`, and over every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256()
    bare = {k: v for k, v in header.items() if k != "checksum"}
    digest.update(json.dumps(bare, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _masks_sha256(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(parts):
        for part, tensor in sorted(parts[name].items()):
            digest.update(f"{name} {part} {tuple(tensor.shape)}\n".encode())
            digest.update(pack_bits(tensor).cpu().numpy().data)
    return digest.hexdigest()


def _binary_parts(state: TaskState) -> dict[str, dict[str, Tensor]]:
    stored = {name: mask.stored() for name, mask in state.named_masks()}
    return {name: {part: t for part, t in parts.items() if t.dtype == torch.bool} for name, parts in stored.items()}


# ---------------------------------------------------------------------- writing


def save_task_file(
    path: str | os.PathLike[str], task: str, state: TaskState, network: "MaskedNetwork", relative_to: str | None = None
) -> Path:
    """Write the frozen `state` of `task`, atomically.

    Args:
        path: the file.
        task: the name that it is loaded under by default.
        state: what is written.
        network: which the task belongs to.
        relative_to: a frozen task of `network`: masks are coded relative to its masks where that is smaller. Whoever loads the
            file must have it. Where it is smaller for no mask, the file does not depend on it.

    Raises:
        InputError: `relative_to` is no other frozen task, or the task's `info` is no plain JSON.
    """
    references: dict[str, dict[str, Tensor]] = {}
    if relative_to is not None:
        other = network.state(relative_to)
        if relative_to == task or not other.frozen:
            raise InputError(f"relative_to={relative_to!r}: expected another task that is frozen; freeze_task it first")
        references = _binary_parts(other)

    tensors, coded, layers = _code_masks(state, network, references)
    coded_bytes = total_bytes(tensors)
    raw_bytes = total_bytes({name: t for name, t in tensors.items() if name not in coded})
    relative = any(coding.coder(tensors[name]) == "relative" for name in coded)

    tensors |= {f"norm/{name}": t for name, t in state.norm_tensors().items()}
    tensors |= {f"head/{name}": t for name, t in head_tensors(state.head).items()}
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    basis = state.method.basis_name()
    header = {
        "version": VERSION,
        "task": task,
        "method": {"name": state.method.name, "options": state.method.options()},
        "norm": state.norm_mode,
        "head": None if state.head is None else describe_head(state.head),
        "backbone_sha256": network.backbone_sha256,
        "densities": state.densities(),
        "info": state.info,
        "storage": {
            "weights": sum(layers.values()),
            "coded_bytes": coded_bytes,
            "entropy_bits": math.fsum((8 * raw_bytes, *(entry["entropy_bits"] for entry in coded.values()))),
            "layers": layers,
        },
        "relative_to": {"task": relative_to, "sha256": _masks_sha256(references)} if relative else None,
        "basis": None if basis is None else {"name": basis, "sha256": network.bases()[basis].sha256},
        "coded": coded,
    }
    try:
        header = parse_json(json.dumps(header, allow_nan=False))  # tuples become lists, as they will read back
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"task {task!r}: its info is no plain JSON ({error}): keep to numbers, text, lists and dicts") from error
    header["checksum"] = checksum(header, tensors)
    content = tensor_bytes(tensors, {"format": FORMAT, "header": json.dumps(header)})
    if int.from_bytes(content[:8], "little") > MAX_HEADER:
        raise InputError(f"task {task!r}: its header is longer than {MAX_HEADER} bytes; keep what is large out of `info`")
    return write_bytes(path, content)


def _code_masks(
    state: TaskState, network: "MaskedNetwork", references: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], dict[str, int]]:
    """The masks' tensors as they are stored, the header's `coded`, and the number of weights by layer."""
    tensors: dict[str, Tensor] = {}
    coded: dict[str, dict[str, Any]] = {}
    layers: dict[str, int] = {}
    for name, mask in state.named_masks():
        layers[name] = network.layers()[name].weight.numel()
        for part, values in mask.stored().items():
            key = f"mask/{name}/{part}"
            if values.dtype not in CODED.values() or values.numel() > layers[name]:  # more is not read back, see _decode_masks
                tensors[key] = values
                continue
            reference = references.get(name, {}).get(part)
            if reference is not None and (values.dtype != torch.bool or reference.shape != values.shape):
                reference = None
            tensors[key] = coding.encode(values, reference)
            used = reference if coding.coder(tensors[key]) == "relative" else None
            coded[key] = {
                "dtype": str(values.dtype).removeprefix("torch."),
                "shape": list(values.shape),
                "entropy_bits": coding.entropy_bits(values, used),
            }
    return tensors, coded, layers


# ---------------------------------------------------------------------- reading


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


def check_backbone(path: str | os.PathLike[str], header: Mapping[str, Any], network: "MaskedNetwork") -> None:
    """Raise an `InputError` unless the task file is for the backbone of `network`."""
    if header["backbone_sha256"] != network.backbone_sha256:
        raise InputError(
            f"{path} belongs to the backbone {header['backbone_sha256'][:12]}…, this network's is "
            f"{network.backbone_sha256[:12]}…: load the backbone that the task was trained on"
        )


def load_task_file(
    path: str | os.PathLike[str], network: "MaskedNetwork", head: nn.Module | None = None
) -> tuple[str, TaskState]:
    """Read and check a task file against `network`, and make its frozen state; `network` is left as it is.

    `head`, if the file cannot rebuild one, is written into after everything else was checked.
    """
    path = expanded(path)
    header, tensors = read_task_file(path)
    check_backbone(path, header, network)
    check_basis(path, header, network)
    references = _references(path, header, network)
    groups: dict[str, dict[str, Tensor]] = {"mask": {}, "norm": {}, "head": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in groups:
            raise InputError(f"{path} has an unexpected tensor {key!r}: it is damaged or of another program")
        groups[kind][name] = tensor
    stored = _decode_masks(path, header["coded"], groups["mask"], references, network)

    norm_parameters, norm_buffers = network.norm_tensors(header["norm"])
    norm = fitting(f"{path}: norm state", groups["norm"], norm_parameters | norm_buffers)
    if header["head"] is None and head is not None:
        raise InputError(f"{path} has no head, but one was passed: leave it out")
    passed = head
    if passed is None and header["head"] is not None:
        head = rebuild_head(path, header["head"], groups["head"], float_type(network))
    fitting(f"{path}: head", groups["head"], head_tensors(head))

    check_plain(header["method"]["options"], f"{path}: options of its method", most=MAX_OPTIONS, largest=1e18)
    with refusing(f"{path}: the masks cannot be restored"):
        method = build_method(header["method"]["name"], header["method"]["options"])
        if method.basis_name() != (header["basis"] or {}).get("name"):
            raise InputError(f"{path}: the method's basis is {method.basis_name()!r}, the file names {header['basis']}")
        masks = method.restore(stored, network.layers(), network.bases())
        state = TaskState(
            method, masks, {n: norm[n] for n in norm_parameters}, {n: norm[n] for n in norm_buffers}, head, header["norm"]
        )
        state.freeze()
    state.info = header["info"]
    if passed is not None:
        copy_into(passed, groups["head"])
    return header["task"], state


def _existing(path: str | os.PathLike[str]) -> Path:
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"no task file at {path}; check the path")
    return path


def check_basis(path: Path, header: Mapping[str, Any], network: "MaskedNetwork") -> None:
    """Raise an `InputError` unless `network` has the basis whose masks the task file combines, if it combines any."""
    if header["basis"] is None:
        return
    name, sha256, bases = header["basis"]["name"], header["basis"]["sha256"], network.bases()
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


def _references(path: Path, header: Mapping[str, Any], network: "MaskedNetwork") -> dict[str, dict[str, Tensor]]:
    """The masks that those of the file are coded relative to, by weight and part."""
    if header["relative_to"] is None:
        return {}
    task, sha256 = header["relative_to"]["task"], header["relative_to"]["sha256"]
    if task not in network.tasks():
        raise InputError(f"{path} is coded relative to the task {task!r}, which this network does not have: load that task first")
    reading, here = _reading.get(), path.resolve()
    if here in reading or len(reading) >= MAX_CHAIN:
        raise InputError(
            f"{path} is coded relative to tasks that lead back to it, or to a chain of more than {MAX_CHAIN}: "
            "load one of them from a file that was saved without relative_to"
        )
    token = _reading.set((*reading, here))
    try:
        state = network.state(task)
    finally:
        _reading.reset(token)
    if not state.frozen:
        raise InputError(f"{path} is coded relative to the task {task!r}, which is in training here: load it as it was saved")
    parts = _binary_parts(state)
    if _masks_sha256(parts) != sha256:
        raise InputError(
            f"{path} is coded relative to a task {task!r} with the masks {sha256[:12]}…, this network's of that name has others: "
            "load the one that it was saved with"
        )
    return parts


def _decode_masks(
    path: Path,
    coded: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    references: Mapping[str, Mapping[str, Tensor]],
    network: "MaskedNetwork",
) -> dict[str, dict[str, Tensor]]:
    """The parts of the masks, by weight and part."""
    layers = network.layers()
    stored: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        if name not in layers:
            raise InputError(f"{path} has a mask of {name!r}, which is no masked weight here: give `select` as it was then")
        entry, parts = coded.get(f"mask/{key}"), stored.setdefault(name, {})
        if entry is None:
            parts[part] = tensor
            continue
        shape, weights = entry["shape"], layers[name].weight.numel()
        if math.prod(shape) > weights or len(parts) >= MAX_PARTS:
            raise InputError(f"{path}: {key} has {shape} elements, or is one part too many, for {weights} weights: it is damaged")
        try:
            parts[part] = coding.decode(tensor, CODED[entry["dtype"]], shape, references.get(name, {}).get(part))
        except InputError as error:
            raise InputError(f"{path}: {key}: {error}") from error
    if missing := coded.keys() - {f"mask/{key}" for key in tensors}:
        raise InputError(f"{path} lacks the masks {sorted(missing)[:3]} that its header lists: it is damaged, copy it again")
    return stored


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
