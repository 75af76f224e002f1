"""Adapters of PEFT and LyCORIS as tasks of a network, and tasks as adapters. How files are read is in `adapter_files`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from img2img.errors import InputError
from img2img.files.atomic import write_bytes
from img2img.files.json_files import write_json
from img2img.files.paths import expanded
from img2img.files.tensors import tensor_bytes
from img2img.masks.adapter_files import CONFIG, HASH, LYCORIS_FILE, MODULES_FILE, PEFT_FILE, PREFIX, Adapter, Form
from img2img.masks.adapter_values import ignores_how_it_runs, mixes_groups
from img2img.masks.layers import Layer
from img2img.masks.methods.channel import IA3
from img2img.masks.methods.lora import DoRA, LoKr, LoRA
from img2img.masks.real_valued import RealValuedMask, RealValuedMethod
from img2img.masks.stored_tensors import head_tensors, matching
from img2img.masks.task_network import TaskNetwork
from img2img.masks.task_state import TaskState
from img2img.masks.tensors import copy_into

_KINDS = {LoRA: "LORA", DoRA: "LORA", IA3: "IA3", LoKr: "LOKR"}


@torch.no_grad()
def add_adapter(network: TaskNetwork, task: str, adapter: Adapter, *, head: nn.Module | None = None) -> float:
    """Add an adapter as a frozen task.

    The task's normalisation is the backbone's, unless the adapter's file has normalisation layers: then the task has its own,
    of the file's values, and the backbone's where the file has none.

    Args:
        network: which the adapter was read for.
        task: the new task's name.
        adapter: see `read_adapter`.
        head: the task's head, exactly when the network has one; the file's values are written into it, if it has any.

    Returns:
        The largest share, over the weights, by which half precision moved the change of a weight: `‖Δ16 - Δ‖ / ‖Δ‖`.

    Raises:
        InputError: the name is taken, or the head does not fit. The network is as it was.
    """
    found = {}
    if adapter.head:
        expected = head_tensors(head)
        found = matching(f"{adapter.path}: the head", adapter.head, expected)
    state = network.add_task(task, adapter.method, head=head, norm="own" if adapter.norm else "frozen")
    try:
        if head is not None:
            copy_into(head, found)
        for name, tensor in state.norm_tensors().items():
            if name in adapter.norm:
                tensor.copy_(adapter.norm[name])
        weights = network.masked_weights()
        changed = {}
        for name, mask in state.named_masks():
            for part, parameter in mask.named_parameters():
                parameter.copy_(adapter.values[name][part])
            changed[name] = mask(weights[name])
        network.freeze_task(task)
        moved = [0.0]
        for name, mask in state.named_masks():
            change = (changed[name] - weights[name]).norm().item()
            moved.append((mask(weights[name]) - changed[name]).norm().item() / change if change else 0.0)
    except BaseException:
        network.delete_task(task)
        raise
    return max(moved)


def write_adapter(network: TaskNetwork, task: str, folder: str | os.PathLike[str], form: Form = "peft") -> list[Path]:
    """Write a task as an adapter that PEFT or LyCORIS loads onto the plain network.

    PEFT's form is `adapter_model.safetensors` and `adapter_config.json`; head and normalisation layers are modules that it saves
    whole (`modules_to_save`). LyCORIS' form is `lycoris.safetensors`, which has no place for them: they are in
    `modules.safetensors`, by the names of the network's state dict. Values are the stored ones, in float32.

    Args:
        network: which has the task.
        task: its name; it is frozen by this.
        folder: where the files go.
        form: "peft" or "lycoris".

    Returns:
        The files.

    Raises:
        InputError: the task's method, or one of its layers, has no such form; says which and what helps. Nothing is written.
    """
    state = network.state(task)
    network.freeze_task(task)
    method = state.method
    if type(method) not in _KINDS:
        remedy = "train it by one of these"
        if type(method.inner) in _KINDS:
            remedy = "it has trained copies of some weights beside; train it with masks.trainable_copies=null"
        raise InputError(
            f"the masks of task {task!r} are {method.name}, which neither PEFT nor LyCORIS has: expected lora, dora, lokr or "
            f"ia3, without trainable copies; {remedy}"
        )
    assert isinstance(method, RealValuedMethod)
    tensors: dict[str, Tensor] = {}
    write = _peft_values if form == "peft" else _lycoris_values
    for weight, mask in state.named_masks():
        module = weight.removesuffix(".weight")
        owner, layer = network.backbone.get_submodule(module) if module != weight else None, network.layers()[weight]
        if not isinstance(owner, _ConvNd | nn.Linear | nn.Embedding) or isinstance(owner, _ConvTransposeNd):
            raise InputError(f"task {task!r} changes {weight}, of a layer that {form} does not adapt: {_target(method)}")
        values = {name: value.detach().float().cpu() for name, value in mask.named_parameters()}
        assert isinstance(mask, RealValuedMask)
        try:
            tensors |= write(module, owner, layer, method, values, mask.scale)
        except InputError as error:
            raise InputError(f"task {task!r}, {weight}: {error}") from error
    modules = _modules(network, state)
    folder, metadata = expanded(folder), {HASH: network.backbone_sha256, "format": "pt"}
    if form == "lycoris":
        files = {LYCORIS_FILE: tensors} | ({MODULES_FILE: modules} if modules else {})
        return [write_bytes(folder / name, tensor_bytes(_plain(values), metadata)) for name, values in files.items()]
    config = _peft_config(network, state, method, modules)
    content = tensor_bytes(_plain(tensors | {PREFIX + name: tensor for name, tensor in modules.items()}), metadata)
    return [write_bytes(folder / PEFT_FILE, content), write_json(folder / CONFIG, config)]


def _target(method: RealValuedMethod) -> str:
    return f"train {method.name} with target_weights that name convolutions and linear layers alone, or export the merged network"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _modules(network: TaskNetwork, state: TaskState) -> dict[str, Tensor]:
    """Head, and normalisation where it is not the backbone's, by the names of the plain network's state dict."""
    if state.norm_mode == "instance":
        raise InputError(
            "the task normalises by each image's own statistics (norm='instance'), which no adapter file can say: export "
            "it as onnx or pt2"
        )
    tensors = {f"{network.head_name}.{name}": tensor for name, tensor in head_tensors(state.head).items()}
    frozen, norm = network.frozen_tensors(), state.norm_tensors()
    if any(not torch.equal(tensor, frozen[name]) for name, tensor in norm.items()):
        parameters, buffers = network.norm_tensors("own")  # all of each module, as PEFT saves it
        tensors |= {name: norm.get(name, tensor) for name, tensor in (parameters | buffers).items()}
    return tensors


# ---------------------------------------------------------------------- PEFT


def _peft_values(
    module: str, owner: nn.Module, layer: Layer, method: RealValuedMethod, values: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    kernel, name = layer.weight.shape[2:] if isinstance(owner, _ConvNd) else torch.Size(), PREFIX + module
    ones = [1] * len(kernel)
    outputs = layer.out_channels
    if isinstance(method, LoRA):
        if isinstance(owner, _ConvNd):
            _check_peft_convolution(owner, layer, method)
        rank = method.rank
        A = torch.cat([values["A"], values["A"].new_zeros(rank - len(values["A"]), values["A"].shape[1])])
        B = torch.cat([values["B"], values["B"].new_zeros(outputs, rank - values["B"].shape[1])], 1)
        norms = (
            {f"{name}.lora_magnitude_vector": values["m"].view(1, outputs, *ones) if ones else values["m"]}
            if "m" in values
            else {}
        )
        if isinstance(owner, nn.Embedding):
            return {f"{name}.lora_embedding_A": A, f"{name}.lora_embedding_B": B} | norms
        A, B = (A.view(rank, -1, *kernel), B.view(outputs, rank, *ones)) if ones else (A, B)
        return {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B} | norms
    if isinstance(owner, nn.Embedding):
        raise InputError(f"PEFT has no {method.name} of an embedding; {_target(method)}")
    if isinstance(method, IA3):
        bias = getattr(owner, "bias", None)
        if bias is not None and ((values["g"] - 1) * bias.cpu()).any():
            raise InputError("PEFT's (IA)³ would scale the layer's bias too: use the form lycoris")
        return {f"{name}.ia3_l": values["g"].view(1, outputs, *ones) if ones else values["g"].view(outputs, 1)}
    return {f"{name}.lokr_{part}": _kernel(part, value, layer, kernel) for part, value in values.items()}


def _check_peft_convolution(owner: _ConvNd, layer: Layer, method: RealValuedMethod) -> None:
    if mixes_groups(owner):
        raise InputError(f"PEFT's {method.name} of a grouped convolution mixes the groups: use the form lycoris")
    if ignores_how_it_runs(owner, layer):
        raise InputError(
            f"PEFT runs {method.name} without this convolution's dilation={owner.dilation} and "
            f"padding_mode={owner.padding_mode!r}: use the form lycoris"
        )


def _kernel(part: str, value: Tensor, layer: Layer, kernel: torch.Size) -> Tensor:
    """A whole `w2` of a convolution has the kernel's axes."""
    return value.view(len(value), -1, *kernel) if part == "w2" and kernel else value


def _peft_config(
    network: TaskNetwork, state: TaskState, method: RealValuedMethod, modules: Mapping[str, Tensor]
) -> dict[str, Any]:
    targets = [name.removesuffix(".weight") for name, _ in state.named_masks()]
    saved = [] if network.head_name is None or state.head is None else [network.head_name]
    parameters, buffers = network.norm_tensors("own")
    if modules.keys() & (parameters | buffers).keys():
        saved += network.norm_modules()
    names = [name for name, _ in network.backbone.named_modules() if name]
    for name in names:
        # PEFT takes every module whose name ends so.
        if name not in saved and (same := next((s for s in saved if name.endswith(s)), None)):
            raise InputError(f"PEFT would save {name!r} for {same!r}, since its name ends so: use the form lycoris, or rename it")
    config: dict[str, Any] = {
        "peft_type": _KINDS[type(method)],
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": None,
        # A regular expression for exactly these: names in a list would count as endings too.
        "target_modules": "|".join(re.escape(name) for name in targets),
        "modules_to_save": saved or None,
    }
    if isinstance(method, LoRA):
        config |= {"r": method.rank, "lora_alpha": method.alpha, "use_dora": isinstance(method, DoRA), "bias": "none"}
        return config | {"use_rslora": False, "lora_dropout": 0.0, "fan_in_fan_out": False}
    if isinstance(method, LoKr):
        # PEFT divides by the rank where w2 is whole, too.
        whole = [name for name, mask in state.named_masks() if "w2" in dict(mask.named_parameters())]
        pattern = {"^" + re.escape(name.removesuffix(".weight")): method.rank for name in whole}
        return config | {"r": method.rank, "alpha": method.alpha, "decompose_factor": method.factor, "alpha_pattern": pattern}
    return config | {"feedforward_modules": []}


# ---------------------------------------------------------------------- LyCORIS


def _lycoris_values(
    module: str, owner: nn.Module, layer: Layer, method: RealValuedMethod, values: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    if isinstance(owner, nn.Embedding):
        raise InputError(f"LyCORIS does not adapt embeddings; {_target(method)}, or use the form peft")
    kernel, name = layer.weight.shape[2:], "lycoris_" + module.replace(".", "_")
    ones, outputs = [1] * len(kernel), layer.out_channels
    if isinstance(method, IA3):
        change = values["g"] - 1
        return {f"{name}.weight": change.view(1, outputs, *ones) if ones else change, f"{name}.on_input": torch.tensor(False)}
    if isinstance(method, LoRA):
        rank = len(values["A"])
        found = {
            f"{name}.lora_down.weight": values["A"].view(rank, -1, *kernel),
            f"{name}.lora_up.weight": values["B"].view(outputs, rank, *ones),
        }
        if "m" in values:
            found[f"{name}.dora_scale"] = values["m"].view(outputs, 1, *ones)
    else:
        rank = values["w2_b"].shape[0] if "w2_b" in values else 1
        found = {f"{name}.lokr_{part}": _kernel(part, value, layer, kernel) for part, value in values.items()}
    return found | {f"{name}.alpha": torch.tensor(scale * rank)}
