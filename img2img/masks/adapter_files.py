"""Adapters as PEFT and LyCORIS write them, read as the values of a mask method. Neither library is needed.

An adapter changes the weights of a network of the same names and shapes. Read are LoRA, DoRA, LoKr and (IA)³ of linear layers,
convolutions and, of PEFT's LoRA and DoRA, embeddings. A PEFT file may also hold modules that were trained whole: the head and
normalisation layers can be a task's own. Every tensor of a file is used, or the file is refused with the tensor's name. The
file of a stranger may say anything: sizes, types and values are checked, and none of its regular expressions is run.
"""

import functools
import glob
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from img2img.errors import InputError
from img2img.files.json_files import read_json
from img2img.files.paths import expanded
from img2img.files.tensors import FLOATS, tensor_shapes
from img2img.files.untrusted import check_plain, naming
from img2img.masks.adapter_values import Part, ignores_how_it_runs, method_of, mixes_groups
from img2img.masks.frozen_backbone import FrozenBackbone
from img2img.masks.real_valued import RealValuedMethod
from img2img.masks.storage import read_header
from img2img.masks.stored_tensors import matching

Form = Literal["peft", "lycoris"]
CONFIG, PEFT_FILE, LYCORIS_FILE, MODULES_FILE = (
    "adapter_config.json", "adapter_model.safetensors", "lycoris.safetensors", "modules.safetensors",
)  # fmt: skip
"""Names of files in an adapter's folder. The last one is this program's own, beside a LyCORIS file: head and normalisation."""
HASH = "img2img_backbone_sha256"
"""The key of a file's metadata under which this program writes the backbone that an adapter is for."""
PREFIX = "base_model.model."
"""What names in PEFT's files begin with."""

_PEFT_PARTS = {
    "lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m", "ia3_l": "g",
}  # fmt: skip
_LYCORIS_PARTS = {
    "lora_down.weight": "A", "lora_up.weight": "B", "dora_scale": "m", "alpha": "alpha", "weight": "g", "on_input": "on_input",
}  # fmt: skip
_LOKR_PARTS = {f"lokr_{part}": part for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
_REFUSED = {
    r"lokr_t2": "LoKr in Tucker's form is not read", r"lora_mid(\.weight)?": "LoRA in Tucker's form is not read",
    r"hada_(w[12](_[ab])?|t[12])": "LoHa is no method here", r"oft_(r|R|s|blocks|diag)(\.weight)?": "OFT is no method here",
    r"boft_(r|R|s|blocks)(\.weight)?": "BOFT is no method here", r"lora_[AB]\.bias": "a bias is not part of a task",
    r"diff(_b)?": "a change of the whole weight is not read; see img2img.masks.delta_from_finetuned",
    r"vera_(A|B|lambda_[bd])(\.weight)?": "VeRA is no method here", r"lora_E": "AdaLoRA is no method here",
}  # fmt: skip
"""How the names of values of other methods end, after a dot, and what is said of them."""
# Of a PEFT configuration: what says nothing about the map of the trained weights, or is looked at here.
_NEUTRAL = {
    "alpha_pattern", "alpha", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "decompose_both", "lora_alpha",
    "decompose_factor", "ensure_weight_tying", "eva_config", "exclude_modules", "feedforward_modules", "inference_mode", "r",
    "init_ia3_weights", "init_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "megatron_core",
    "module_dropout", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "rank_dropout", "rank_dropout_scale",
    "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_effective_conv2d", "use_rslora",
    "lora_ga_config", "init_lora_weights",
}  # fmt: skip
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""The values of `init_lora_weights` that leave the network's own weights as they are."""
_KINDS = {"LORA": ("lora", "dora"), "IA3": ("ia3",), "LOKR": ("lokr",)}
_compiled = functools.lru_cache(maxsize=1 << 14)(re.compile)
_LITERAL = re.compile(r"\^?(\\\.|[\w.-])+\$?")


@dataclass(frozen=True)
class Adapter:
    """What a file says, checked against a network.

    Attributes:
        path: the file.
        form: the library that wrote it, or whose form it has.
        method: the mask method of its values.
        values: the masks' values by weight and part, float32.
        norm: normalisation parameters and buffers that the file has, by their names in the network.
        head: the head's tensors that the file has, by their names in the head.
        proven: the file says which backbone it is for, and it is this one. Only files of `adapter_tasks.write_adapter` do.
    """

    path: Path
    form: Form
    method: RealValuedMethod
    values: dict[str, dict[str, Tensor]]
    norm: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    proven: bool = False


def read_adapter(path: str | os.PathLike[str], network: FrozenBackbone) -> Adapter:
    """Read an adapter for `network`.

    Args:
        path: PEFT's folder or its `adapter_model.safetensors` (with `adapter_config.json` beside it), or a LyCORIS file.
        network: whose weights the adapter changes: names and shapes must be the same. Whether it was trained on this very
            backbone is in no file of the libraries.

    Raises:
        InputError: the file is damaged, or something in it fits no weight or is no map of a method here; names the tensor.
    """
    file = _file(expanded(path))
    _refuse_task_file(file)
    config = file.parent / CONFIG
    with naming(file):
        tensors, sha256 = _read_tensors(file, network)
        is_peft = file.name == PEFT_FILE or any(key.startswith(PREFIX) for key in tensors)
        if is_peft and not config.is_file():
            raise InputError(f"there is no {CONFIG} beside it, which says how PEFT scales the adapter: copy it there too")
        proven = bool(sha256)
        if is_peft:
            with naming(CONFIG):
                options = _peft_options(config)
            parts, saved = _peft_parts(tensors, options, network)
        else:
            parts, saved = _lycoris_parts(tensors, network), {}
            if file.name == LYCORIS_FILE and (file.parent / MODULES_FILE).is_file():
                saved, _ = _read_tensors(file.parent / MODULES_FILE, network)
        kinds = {part.kind for part in parts}
        if not parts or len(kinds) > 1:
            raise InputError(
                f"expected the values of one method, got {', '.join(sorted(kinds)) or 'none'}: split the file by method"
            )
        if is_peft and not kinds <= {*_KINDS[options["peft_type"]]}:
            raise InputError(f"it has {kinds.pop()}, and {CONFIG} says peft_type={options['peft_type']}: copy both again")
        norm, head = _saved_modules(saved, network)
        order = list(network.layers())
        method, values = method_of(sorted(parts, key=lambda part: order.index(part.weight)))
        names = list(values)
        if names != order:
            method = method.__class__(**method.options() | {"target_weights": [glob.escape(name) for name in names]})
    return Adapter(file, "peft" if is_peft else "lycoris", method, values, norm, head, proven)


def _file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in (PEFT_FILE, LYCORIS_FILE) if (path / name).is_file()]
        if len(found) != 1:
            which = f"both {PEFT_FILE} and" if found else f"neither {PEFT_FILE} nor"
            raise InputError(f"{path} has {which} {LYCORIS_FILE}: name the file")
        return found[0]
    if not path.is_file():
        raise InputError(f"no adapter at {path}: expected PEFT's folder, or a .safetensors file of PEFT or LyCORIS")
    return path


def _refuse_task_file(file: Path) -> None:
    try:
        header = read_header(file)
    except InputError:
        return
    raise InputError(
        f"{file} is the file of a task of img2img, {str(header['task'])!r}: expected an adapter of PEFT or LyCORIS; "
        "`img2img join INTO BUNDLE` puts the tasks of another bundle into one"
    )


def _read_tensors(file: Path, network: FrozenBackbone) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of a file that is not larger than an adapter can be, and the backbone that its metadata names."""
    shapes = tensor_shapes(file)
    weights = sum(t.numel() for t in network.frozen_tensors().values())
    most = 32 * weights + (1 << 24)
    if (size := file.stat().st_size) > most:
        raise InputError(
            f"it has {size} bytes, more than any adapter of a network of {weights} weights: it is for another network"
        )
    for key, (kind, _) in shapes.items():
        if kind not in FLOATS and not key.endswith((".on_input", "num_batches_tracked")):
            raise InputError(f"{key} is of the type {kind}, expected one of {', '.join(FLOATS)}")
    with safetensors.safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in shapes}
        sha256 = (opened.metadata() or {}).get(HASH)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{key} has values that are no finite numbers: the training diverged, or the file is damaged")
    if sha256 not in (None, network.backbone_sha256):
        raise InputError(f"it belongs to the backbone {sha256[:12]}…, this network's is {network.backbone_sha256[:12]}…")
    return tensors, sha256


# ---------------------------------------------------------------------- PEFT


def _peft_options(path: Path) -> dict[str, Any]:
    options = read_json(path, max_bytes=1 << 20, allow_nan=True)
    if not isinstance(options, dict):
        raise InputError("expected a mapping of options: copy it again")
    check_plain(options, "it")
    kind = options.get("peft_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"peft_type={kind!r:.60} is no method here: expected one of {', '.join(_KINDS)}")
    for key, value in options.items():
        if key not in _NEUTRAL and value not in (None, False, 0, "", [], {}) and not (key == "megatron_config"):
            raise InputError(f"{key}={value!r:.60} changes what the values mean, in a way that is not read here")
    if options.get("init_lora_weights", True) not in _STARTS:
        raise InputError(
            f"init_lora_weights={options['init_lora_weights']!r:.60} changes the network's own weights: save the adapter "
            "converted to LoRA (save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = options.get(key) or {}
        if not isinstance(patterns, dict) or not all(_LITERAL.fullmatch(p) and _number(v) for p, v in patterns.items()):
            raise InputError(f"{key}={patterns!r:.80}: expected names of modules, not regular expressions, and a number each")
    for key in ("r", "lora_alpha", "alpha"):
        if key in options and not _number(options[key]):
            raise InputError(f"{key}={options[key]!r:.60}: expected a number")
    return options


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _of_pattern(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """PEFT's rule: the first pattern that is the end of the module's name, its "." standing for any letter."""
    for pattern, value in patterns.items():
        if _compiled(rf"(?:.*\.)?(?:{pattern})").fullmatch(module):
            return value
    return otherwise


def _peft_parts(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any], network: FrozenBackbone
) -> tuple[list[Part], dict[str, Tensor]]:
    """The adapters by weight, and the tensors of modules that were saved whole."""
    found: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    own = network.backbone.state_dict().keys()
    head = None if network.head_name is None else network.head_name + "."
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            raise InputError(f"{key}: expected a name that begins with {PREFIX!r}")
        name = key.removeprefix(PREFIX)
        if name in own:  # a module that was saved whole, whatever it is called
            saved[name] = tensor
            continue
        suffix = next((s for s in (*_PEFT_PARTS, *_LOKR_PARTS) if name.endswith("." + s)), None)
        if suffix is None:
            if head is None or not name.startswith(head):
                _refuse_known(key, name)
            saved[name] = tensor
            continue
        module = name.removesuffix("." + suffix)
        values = found.setdefault(module, {})
        value = (_PEFT_PARTS | _LOKR_PARTS)[suffix]
        if value in values:
            raise InputError(f"{key}: the file has another tensor for the same part")
        values[value], names[module] = tensor, key
    parts = []
    for module, values in found.items():
        weight = _weight_of(module, names[module], network)
        part = Part(names[module], weight, network.layers()[weight], network.backbone.get_submodule(module), "peft", values)
        alpha = options.get("lora_alpha", options.get("alpha", 8))
        alpha = _of_pattern(options.get("alpha_pattern") or {}, module, alpha)
        rank = _of_pattern(options.get("rank_pattern") or {}, module, options.get("r", 8))
        if part.rank not in (None, rank):
            raise InputError(f"{names[module]} has the rank {part.rank}, {CONFIG} says {rank}: copy both again")
        if rank < 1:
            raise InputError(f"{CONFIG} says the rank {rank} for {module}: expected at least 1")
        parts.append(part.scaled(alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)))
        _check_meaning(part, options, module)
    return parts, saved


def _check_meaning(part: Part, options: Mapping[str, Any], module: str) -> None:
    """Refuse what PEFT computes from the same values in another way than by a change of the weight."""
    layer = part.module
    if part.kind in ("lora", "dora"):
        if bool(options.get("use_dora")) != (part.kind == "dora"):
            raise InputError(f"{part.key}: {CONFIG} says use_dora={options.get('use_dora')}, the file's values say {part.kind}")
        if isinstance(layer, _ConvNd) and mixes_groups(layer):
            raise InputError(f"{part.key}: PEFT's {part.kind} of a grouped convolution mixes the groups, which no weight does")
        if isinstance(layer, _ConvNd) and ignores_how_it_runs(layer, part.layer):
            raise InputError(
                f"{part.key}: PEFT runs the {part.kind} of this convolution without its dilation={layer.dilation} and "
                f"padding_mode={layer.padding_mode!r}, so that it is no change of the weight"
            )
    if part.kind == "ia3":
        patterns = options.get("feedforward_modules") or []
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise InputError(f"{CONFIG} has feedforward_modules={patterns!r:.60}: expected a list of names")
        if any(module.endswith(p) for p in patterns):  # as PEFT looks for it, in the middle of a name too
            raise InputError(f"{part.key}: feedforward_modules scales this layer's inputs, which no method here does")
        part.check_bias()


# ---------------------------------------------------------------------- LyCORIS


def _lycoris_parts(tensors: Mapping[str, Tensor], network: FrozenBackbone) -> list[Part]:
    modules: dict[str, list[str]] = {}
    for name, _ in network.backbone.named_modules():
        modules.setdefault("lycoris_" + name.replace(".", "_"), []).append(name)
    found: dict[str, dict[str, Tensor]] = {}
    names: dict[str, str] = {}
    for key, tensor in tensors.items():
        flat, _, suffix = key.partition(".")
        value = (_LYCORIS_PARTS | _LOKR_PARTS).get(suffix)
        if value is None or not flat.startswith("lycoris_"):
            _refuse_known(key, suffix)
            raise InputError(f"{key}: expected lycoris_MODULE and a part of LoRA, DoRA, LoKr or (IA)³, or a name of PEFT's form")
        if len(candidates := modules.get(flat, [])) > 1:
            raise InputError(f"{key} may mean any of {', '.join(candidates)}: rename one in the network")
        module = candidates[0] if candidates else flat.removeprefix("lycoris_")
        found.setdefault(module, {})[value] = tensor
        names.setdefault(module, key)
    parts = []
    for module, values in found.items():
        weight = _weight_of(module, names[module], network)
        alpha, on_input = values.pop("alpha", None), values.pop("on_input", None)
        layer, owner = network.layers()[weight], network.backbone.get_submodule(module)
        part = Part(names[module], weight, layer, owner, "lycoris", values)
        if part.kind == "ia3":
            if on_input is None or on_input.numel() != 1 or bool(on_input) or alpha is not None:
                raise InputError(
                    f"{part.key}: expected on_input=False, a factor of each output; inputs are scaled by no method here"
                )
            parts.append(part)
            continue
        if alpha is None or alpha.numel() != 1 or on_input is not None:
            raise InputError(f"{part.key}: expected one alpha, a number, with these values")
        # As LyCORIS: where neither factor of LoKr is a product there is no rank to divide by.
        parts.append(part.scaled(1.0 if part.rank is None else float(alpha) / max(1, part.rank)))
    return parts


# ---------------------------------------------------------------------- both


def _refuse_known(key: str, suffix: str) -> None:
    for end, why in _REFUSED.items():
        if re.search(rf"(^|\.){end}$", suffix):
            raise InputError(f"{key}: {why}")


def _weight_of(module: str, key: str, network: FrozenBackbone) -> str:
    """The name of the weight that an adapter of `module` changes."""
    backbone, head = network.backbone, network.head_name
    if head is not None and (module == head or module.startswith(head + ".")):
        raise InputError(f"{key} changes the head, which is a task's own: save the head whole (modules_to_save)")
    owner = dict(backbone.named_modules()).get(module)
    if owner is None:
        hint = next((name for name, _ in backbone.named_modules() if name and module.endswith("." + name)), None)
        remedy = f"; its names begin with {module.removesuffix(hint)!r}: remove that" if hint else ""
        raise InputError(f"{key}: this network has no module {module!r}{remedy}; the adapter is for another network")
    known = isinstance(owner, _ConvNd | nn.Linear | nn.Embedding) and not isinstance(owner, _ConvTransposeNd)
    weight = f"{module}.weight"
    if not known:
        raise InputError(
            f"{key}: {module} is a {type(owner).__name__}, which neither PEFT nor LyCORIS adapts in a form known here"
        )
    tied = [name for name, p in backbone.named_parameters(remove_duplicate=False) if p is owner.weight]
    if len(tied) > 1:
        raise InputError(f"{key}: {' and '.join(tied)} are one tensor, of which an adapter changes one use")
    if weight not in network.layers():
        raise InputError(f"{key}: {weight} is not among the weights that tasks of this network change (select)")
    return weight


def _saved_modules(saved: Mapping[str, Tensor], network: FrozenBackbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of normalisation and of the head; any other is refused."""
    parameters, buffers = network.norm_tensors("own")
    known = parameters | buffers
    prefix = None if network.head_name is None else network.head_name + "."
    norm, head = {}, {}
    for name, tensor in saved.items():
        if name in known:
            norm[name] = tensor
        elif prefix is not None and name.startswith(prefix):
            head[name.removeprefix(prefix)] = tensor
        else:
            there = name in network.frozen_tensors()
            why = "only the head and normalisation layers can be a task's own" if there else "this network has no such tensor"
            raise InputError(f"{name} was saved whole (modules_to_save, bias): {why}")
    return matching("modules saved whole", norm, {name: known[name] for name in norm}), head
