"""Where a model runs."""

import logging
from typing import Any

import torch

from img2img.errors import InputError, first_line

logger = logging.getLogger("img2img")


def usual_batch(device: torch.device) -> int:
    """Images that run together where nobody said how many: 8, or 1 on a CPU, whose caches hold no more."""
    return 1 if device.type == "cpu" else 8


def chosen_device(name: Any) -> torch.device:
    """The device of a name; of "auto" a GPU where there is one.

    Raises:
        InputError: it is no device, or none that can be used here.
    """
    expected = "expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
    if not isinstance(name, str | torch.device):
        raise InputError(f"device={name!r}: {expected}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # "meta", which holds no values, fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={str(name)!r} cannot be used here ({first_line(error)}): {expected}") from error
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; emulated ones are several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # The mapping came with torch 2.11 or after it: where it is missing, nothing is known of the processor.
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])()
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def warn_of_emulation(device: torch.device, option: str, remedy: str) -> None:
    """Say that `option` asks for bfloat16 of a device that emulates it."""
    if not computes_bfloat16(device):
        logger.warning(
            "%s: this %s has no instructions for bfloat16 and emulates them, which takes several times as long as float32: %s",
            option, "processor" if device.type == "cpu" else "device", remedy,
        )  # fmt: skip
