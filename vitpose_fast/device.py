"""Choose the device to run on, and recognize out-of-memory errors."""

from __future__ import annotations

import torch


def pick_device(name: str | None) -> torch.device:
    """Return the named device; None means CUDA if available, else the CPU.

    Raises:
        ValueError: the device does not exist on this machine, or is neither a CPU nor a CUDA device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only CPU and CUDA devices are supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); expected cpu, cuda or cuda:N") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error was caused by a failed allocation, on a GPU or on the host.

    For the host torch raises a plain RuntimeError, so the text of the message decides. The errors during whose handling
    the error was raised (its `__context__`) count too.
    """
    words = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    found: BaseException | None = error
    while found is not None:  # when memory runs out in a CUDA graph capture, another error follows
        if isinstance(found, (MemoryError, torch.OutOfMemoryError)) or any(w in str(found).lower() for w in words):
            return True
        found = found.__context__
    return False
