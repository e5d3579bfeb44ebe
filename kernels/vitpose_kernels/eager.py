"""Registration of ops (`triton_op`), with a short way to their reference for eager mode on a CPU.

A registered op costs the host about 50 us per call, and as much again in the backward pass: the price of being visible
to torch.compile, torch.export, torch.func and dispatch modes. Where none of them watches, a CPU saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._library.triton as library
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_eager(arguments: Sequence[Any]) -> bool:
    """Return whether an op may be computed without being registered: all its tensors are plain and on the CPU.

    False while torch.compile or torch.export traces, inside torch.func transforms, under a `TorchDispatchMode` (such
    as selective activation checkpointing and FLOP counters) and for subclasses of tensors.

    Args:
        arguments: those of the op; values that are neither tensors nor lists of tensors do not matter.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    for value in arguments:
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:
            if not value.is_cpu:
                return False
        elif kind is list:
            if value and isinstance(value[0], Tensor) and not is_eager(value):
                return False
        elif isinstance(value, Tensor):
            return False
    return True


class ShortWay:
    """A registered op that runs a function directly, as a plain `torch.autograd.Function`, where `is_eager` allows.

    Args:
        op: what `torch.library.triton_op` returned.
        function: the function to run instead of the op, with the same arguments, and the same results up to rounding.
            None means the one that the op was made of.

    Attributes:
        body: the function that the op was made of.
    """

    def __init__(self, op: Any, function: Callable[..., Any] | None) -> None:
        self.op, self.body = op, op._init_fn
        self.function = self.body if function is None else function
        self.differentiable: Any = None

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """Register the backward pass of the op; the arguments are those of `CustomOpDef.register_autograd`."""
        self.op.register_autograd(backward, setup_context=setup_context)
        function = self.function

        class Differentiable(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> Any:  # a `setup_context` of its own would cost another 40 us
                out = function(*arguments)
                setup_context(ctx, arguments, out)
                return out

        Differentiable.backward = staticmethod(once_differentiable(backward))  # type: ignore[assignment]
        self.differentiable = Differentiable

    def __call__(self, *arguments: Any) -> Any:
        if not is_eager(arguments):
            return self.op(*arguments)
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            assert self.differentiable is not None
            return self.differentiable.apply(*arguments)
        return self.function(*arguments)


def triton_op(name: str, function: Callable[..., Any] | None = None) -> Callable[[Callable[..., Any]], ShortWay]:
    """Return a decorator that registers a function as the op `name`, which mutates no inputs, for PyTorch.

    It calls `torch.library.triton_op`, without that function's search for kernels in the source of the op. The search
    finds none of ours, because `launch.run` launches them; it only imports the compiler of PyTorch, for over a second.

    Args:
        name: namespace::name.
        function: what runs instead of the op in eager mode on a CPU (see `ShortWay`).
    """

    def register(body: Callable[..., Any]) -> ShortWay:
        search = getattr(library, "get_inner_triton_kernels", None)
        if search is not None:
            library.get_inner_triton_kernels = lambda fn: []
        try:
            return ShortWay(library.triton_op(name, body, mutates_args=()), function)
        finally:
            if search is not None:
                library.get_inner_triton_kernels = search

    return register
