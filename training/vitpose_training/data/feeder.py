"""Batches for the training loop: workers decode ahead, the device crops while it computes the batch before."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vitpose_fast.codec import HeatmapCodec
from vitpose_training.data.batches import Batch, Packed, SampleSet, make_batch
from vitpose_training.data.order import Key


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _end_with_parent(_worker: int) -> None:
    """Called in a new worker: end it when the training process is gone, even killed.

    torch's workers look for that themselves, but one that is still starting when the training process is killed takes
    whoever adopts it for its parent, and waits for ever (torch 2.13).
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Loaded(Dataset):
    """What the workers call: the samples of some keys, packed, or why there are none (exceptions lose their text)."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __getitems__(self, keys: list[Key]) -> Packed | str:
        try:
            return Packed.of([self.samples[key] for key in keys])
        except ValueError as error:
            return str(error)


class Feeder:
    """Micro-batches on the device; `prepare` the next one while the device computes.

    On a GPU uploads and crops run on a stream of their own. `waited` counts the seconds that `prepare` and `take` spent
    waiting for the workers, or decoding where there are none.

    Use it in a `with` statement: whatever ends that, an error too, the workers end with it. If this process is killed,
    they notice and end by themselves.
    """

    def __init__(
        self,
        samples: SampleSet,
        keys: Iterable[list[Key]],
        codecs: Mapping[str, HeatmapCodec],
        device: torch.device,
        workers: int,
    ) -> None:
        self.codecs, self.device, self.waited = codecs, device, 0.0
        loader = DataLoader(
            _Loaded(samples),
            batch_sampler=keys,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=2 if workers else None,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # its own: torch's is left alone
        )
        self._loader = iter(loader)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: tuple[Batch, list[tuple[str, str]]] | None = None

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, if there are any.

        An exception's traceback can keep the loader alive, so it is told to end and not just forgotten.
        """
        end = getattr(self._loader, "_shutdown_workers", None)  # there is no public way (torch 2.13)
        if end is not None:
            end()

    def prepare(self) -> None:
        """Fetch the next micro-batch, if there is one and it is not there yet.

        Raises:
            ValueError: too many images that cannot be used, a worker that died.
        """
        if self._ready is not None:
            return
        started = time.perf_counter()
        try:
            packed = next(self._loader, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"a data worker died ({reason}); out of memory? lower --workers") from None
        self.waited += time.perf_counter() - started
        if isinstance(packed, str):
            raise ValueError(packed)
        if packed is None:
            return
        with torch.cuda.stream(self._stream):  # no-op for None
            batch = make_batch(packed, self.codecs, self.device)
        self._ready = batch, [bad for s in packed.samples for bad in s.bad]

    def take(self) -> tuple[Batch, list[tuple[str, str]]]:
        """(micro-batch, images that had to be replaced, with the reason).

        Raises:
            StopIteration: there are no more.
        """
        self.prepare()
        if self._ready is None:
            raise StopIteration
        ready, self._ready = self._ready, None
        if self._stream is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self._stream)
            batch = ready[0]
            for tensor in (batch.crops, *(t for p in batch.parts.values() for t in (p.keypoints, p.visible))):
                tensor.record_stream(here)
        return ready
