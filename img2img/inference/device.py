"""Where a model runs."""

from typing import Any

import torch

from img2img.errors import InputError, first_line


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
