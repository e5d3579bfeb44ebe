"""CUDA graphs of functions of tensors: recorded once per batch bucket, replayed without the cost of launches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CAPTURING = threading.Lock()  # CUDA captures one graph at a time in a process
_recorder: int | None = None  # the thread that captures: what it calls inside is recorded, not replayed


class _Recorded(NamedTuple):
    graph: Any
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]


class Graphs:
    """Replays functions from graphs; the first dimension of every input and output is the batch.

    A batch is padded to the next bucket (padding repeats the first sample or holds what an earlier batch left: samples
    must not depend on each other) and cut into pieces of the largest.

    For one device; any number of threads and streams may call. The graphs share their memory, so replays run one after
    the other: a lock orders the threads, and on the device each replay waits for the event at the end of the last one.

    Args:
        buckets: batch sizes to record, ascending.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        self.buckets = tuple(buckets)
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise ValueError(f"got buckets={tuple(buckets)}, expected ascending batch sizes of at least 1")
        self._recorded: dict[Any, _Recorded] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._lock = threading.Lock()
        self._last_replay: Any = None  # event

    def bucket(self, batch: int) -> int:
        """Smallest bucket that holds `batch`, else the largest."""
        return next((b for b in self.buckets if b >= batch), self.buckets[-1])

    def __call__(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """function(*inputs): a tensor or a tuple of them, copies that later calls leave alone.

        `name` stands for the function: the same name must mean the same computation.
        """
        batch = inputs[0].shape[0]
        if _recorder == threading.get_ident() or batch == 0:
            return function(*inputs)
        with torch.inference_mode(False), torch.no_grad():  # buffers of inference mode could not be filled outside it
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
                # One stream of our own, for the device of the inputs: libraries get their work space when it warms up,
                # not inside the memory of a graph.
                self._stream = self._stream or torch.cuda.Stream()
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):  # compile, allocate work space, choose algorithms
                    for _ in range(2):
                        function(*inputs)
                torch.cuda.current_stream().wait_stream(self._stream)
                graph = torch.cuda.CUDAGraph()
                # "thread_local": other threads may allocate meanwhile (a DataLoader that pins memory, another model).
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    outputs = function(*inputs)
            finally:
                _recorder = None
        return _Recorded(graph, inputs, outputs if isinstance(outputs, tuple) else (outputs,))

    def __deepcopy__(self, memo: dict) -> Graphs:
        return Graphs(self.buckets)  # graphs hold addresses: a copy records its own

    def __reduce__(self) -> tuple:
        return Graphs, (self.buckets,)


def in_pieces(function: Callable[..., Any], inputs: Sequence[Tensor], size: int) -> Any:
    """function(*inputs) with at most `size` samples at a time; its tensor, or tuple of tensors, joined."""
    parts = [function(*piece) for piece in zip(*(x.split(size) for x in inputs), strict=True)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))


def padded(x: Tensor, size: int) -> Tensor:
    """A contiguous copy with `size` samples, the missing ones repeating the first."""
    index = torch.arange(size, device=x.device)
    return x.index_select(0, torch.where(index < x.shape[0], index, 0)).contiguous()
