"""Feed micro-batches to the training loop.

Worker processes decode images ahead of time. On a GPU, crops are cut while the model computes the previous micro-batch.
"""

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


def _identity(loaded: Any) -> Any:
    return loaded


def _end_with_parent(_worker: int) -> None:
    """Make this worker process exit when the training process ends, even if the training process is killed.

    `DataLoader` calls this in each new worker. Its workers also watch their parent process by themselves. But if the
    training process is killed while a worker is still starting, the worker mistakes the process that adopts it for its
    parent and waits forever (torch 2.13).
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Loaded(Dataset):
    """The dataset that workers read: it maps a list of keys to the packed samples.

    If a sample raises ValueError, the result is the message, a str, because `DataLoader` changes the text of
    exceptions.
    """

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __getitems__(self, keys: list[Key]) -> Packed | str:
        try:
            return Packed.of([self.samples[key] for key in keys])
        except ValueError as error:
            return str(error)


class Feeder:
    """Context manager that loads micro-batches ahead of time and puts them on the device.

    Call `take` for the next micro-batch, and `prepare` afterwards to load the following one while the device computes.
    On a GPU, uploads and crops run on a separate stream. `waited` is the total number of seconds that `prepare` and
    `take` have waited for the workers (or decoded images, if there are no workers).

    Leaving the `with` block ends the workers, also after an exception. If this process is killed, the workers notice
    and exit by themselves.

    Args:
        samples: The sample set that the keys index.
        keys: For each micro-batch, the keys of its samples.
        codecs: The codec of each task.
        device: The device of the micro-batches.
        workers: Number of worker processes. 0 means that this process decodes.
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
            collate_fn=_identity,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=2 if workers else None,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # keeps torch's global generator untouched
        )
        self._loader = iter(loader)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: tuple[Batch, list[tuple[str, str]]] | None = None

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. Without workers this does nothing.

        It is not enough to delete `self._loader`, because a traceback can keep the loader and its workers alive.
        """
        end = getattr(self._loader, "_shutdown_workers", None)  # torch 2.13 has no public method for this
        if end is not None:
            end()

    def prepare(self) -> None:
        """Load the next micro-batch. Does nothing if `take` has not yet returned the loaded one, or if none is left.

        Raises:
            ValueError: If neither the image of a sample nor any replacement can be used (see `SampleSet`), or if a
                worker died.
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
        """Return the next micro-batch, and (path, reason) of each unusable image that another sample replaced.

        Raises:
            StopIteration: If no micro-batch is left.
            ValueError: As in `prepare`.
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
