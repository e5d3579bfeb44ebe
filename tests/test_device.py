"""Choosing a device by name, and recognizing out-of-memory errors."""

from __future__ import annotations

import pytest
import torch

from vitpose_fast.device import is_out_of_memory, pick_device


def test_an_unusable_device_is_refused_in_one_line():
    for name in ("foo", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"device '{name}' cannot be used") as error:
            pick_device(name)
        assert "expected cpu, cuda or cuda:N" in str(error.value) and "\n" not in str(error.value)
    assert pick_device("cpu").type == "cpu"
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("got batch_size=0, expected at least 1"), False),
    ],
)
def test_out_of_memory_errors_are_recognized(error, expected):
    assert is_out_of_memory(error) is expected
