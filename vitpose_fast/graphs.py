"""CUDA graphs of tensor functions: captured once per batch bucket, then replayed without launch overhead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CAPTURING = threading.Lock()  # CUDA captures one graph at a time per process
_recorder: int | None = None  # id of the capturing thread; `Graphs` that it calls meanwhile become part of its graph


class _Recorded(NamedTuple):
    graph: Any
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]


class Graphs:
    """Capture functions as CUDA graphs and replay them. The first dimension of every input and output is the batch.

    A graph is captured at the first call for each combination of name, bucket, shapes and dtypes. A batch is padded to
    the smallest bucket that holds it, and split if it exceeds the largest one. The padding repeats the first sample or
    holds stale values of an earlier batch, so samples must not depend on each other.

    One instance serves one device, and any number of threads and streams. The graphs share a memory pool, so replays
    never overlap: a lock serializes the threads, and on the device each replay waits for an event at the end of the
    previous one. A copy (also by pickle) has the buckets but no graphs.

    Args:
        buckets: batch sizes to capture, in ascending order.

    Raises:
        ValueError: the buckets are empty, not strictly ascending, or below 1.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self.buckets = tuple(buckets)
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise ValueError(f"got buckets={tuple(buckets)}, expected ascending batch sizes of at least 1")
        self._recorded: dict[Any, _Recorded] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._lock = threading.Lock()
        self._last_replay: Any = None  # CUDA event at the end of the last replay

    def bucket(self, batch: int) -> int:
        """Return the smallest bucket that is at least `batch`, or the largest bucket if none is."""
        return next((b for b in self.buckets if b >= batch), self.buckets[-1])

    def __call__(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return function(*inputs), a tensor or a tuple of tensors, computed by replaying a graph.

        The results are copies that later calls do not overwrite. An empty batch, or a call during a capture by the same
        thread, runs the function directly.

        Args:
            name: identifies the computation; the same name must always mean the same function.
            function: called only to capture a graph (including warm-up), with inputs padded to a bucket.
            inputs: one or more CUDA tensors with the same batch size.
        """
        batch = inputs[0].shape[0]
        if _recorder == threading.get_ident() or batch == 0:
            return function(*inputs)
        # Tensors created in inference mode are read-only outside it, and the static inputs are reused by later calls.
        with torch.inference_mode(False), torch.no_grad():
            return in_pieces(lambda *piece: self._replay(name, function, *piece), inputs, self.buckets[-1])

    def _replay(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        batch = inputs[0].shape[0]
        size = self.bucket(batch)
        key = (name, size, *((x.shape[1:], x.dtype) for x in inputs))
        stream = torch.cuda.current_stream(inputs[0].device) if inputs[0].is_cuda else None
        with self._lock:
            if stream is not None and self._last_replay is not None:
                stream.wait_event(self._last_replay)
            recorded = self._recorded.get(key)
            if recorded is None:
                recorded = self._recorded[key] = self._record(function, [padded(x, size) for x in inputs])
            for static, x in zip(recorded.inputs, inputs, strict=True):
                static[:batch].copy_(x, non_blocking=True)
            recorded.graph.replay()
            outputs = tuple(out[:batch].clone() for out in recorded.outputs)
            if stream is not None:
                self._last_replay = stream.record_event()
        return outputs if len(outputs) > 1 else outputs[0]

    def _record(self, function: Callable[..., Any], inputs: list[Tensor]) -> _Recorded:
        global _recorder
        with _CAPTURING, torch.cuda.device(inputs[0].device):
            _recorder = threading.get_ident()
            try:
                # A stream that is used only for captures: during the warm-up below libraries allocate their workspace
                # for this stream, so it does not become part of the memory of the graph.
                self._stream = self._stream or torch.cuda.Stream()
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):  # warm up: compile, allocate workspaces, choose algorithms
                    for _ in range(2):
                        function(*inputs)
                torch.cuda.current_stream().wait_stream(self._stream)
                graph = torch.cuda.CUDAGraph()
                # "thread_local": other threads (a DataLoader that pins memory, another model) may allocate meanwhile.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    outputs = function(*inputs)
            finally:
                _recorder = None
        return _Recorded(graph, inputs, outputs if isinstance(outputs, tuple) else (outputs,))

    def __deepcopy__(self, memo: dict) -> Graphs:
        return Graphs(self.buckets)  # graphs contain addresses, so a copy captures its own

    def __reduce__(self) -> tuple:
        return Graphs, (self.buckets,)


def in_pieces(function: Callable[..., Any], inputs: Sequence[Tensor], size: int) -> Any:
    """Call `function` on at most `size` samples at a time and concatenate its outputs along the first dimension.

    `function` maps the pieces of `inputs` to a tensor or a tuple of tensors, and the result has the same form.
    """
    parts = [function(*piece) for piece in zip(*(x.split(size) for x in inputs), strict=True)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))


def padded(x: Tensor, size: int) -> Tensor:
    """Return a contiguous copy of `x`, which has 1 to `size` samples, padded to `size` by repeating the first one."""
    index = torch.arange(size, device=x.device)
    return x.index_select(0, torch.where(index < x.shape[0], index, 0)).contiguous()
