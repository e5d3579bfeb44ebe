"""The device that a model runs on: chosen by name, and out of memory at times."""

from __future__ import annotations

import torch


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: CUDA where there is one.

    Raises:
        ValueError: no such device, or not on this machine.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("nothing here runs on it")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); expected cpu, cuda or cuda:N") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host (which torch reports as a plain RuntimeError)."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    found: BaseException | None = error
    while found is not None:  # the end of a failed recording raises an error of its own on top
        if isinstance(found, (MemoryError, torch.OutOfMemoryError)) or any(w in str(found).lower() for w in words):
            return True
        found = found.__context__
    return False
