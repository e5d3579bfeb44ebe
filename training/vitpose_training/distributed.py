"""Several processes, started by torchrun: who am I, what do all of us know, how is the model shared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitpose_fast.device import pick_device


@dataclass(frozen=True)
class World:
    """The processes of a run; one process alone is a world of size 1, without any communication."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor [...] over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One value of each process, in the order of ranks."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def agree(self, function: Callable[[], Any]) -> Any:
        """Run `function` in every process; if it fails in one, it fails in all, with that one's message.

        Raises:
            ValueError: what went wrong, in one line.
        """
        failure = value = None
        try:
            value = function()
        except (ValueError, OSError, ImportError) as error:
            failure = error
        first = next((f for f in self.gather(None if failure is None else str(failure)) if f is not None), None)
        if failure is not None:
            raise failure
        if first is not None:
            raise ValueError(first)
        return value

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def join(device: str | None) -> World:
    """The world that torchrun describes in the environment, else this process alone.

    Raises:
        ValueError: an unusable device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(pick_device(device))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is not None and device.startswith("cuda:"):
        raise ValueError(f"got --device {device} for {size} processes, expected cuda: each takes its own")
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{local}"
    picked = pick_device(device)
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    if not dist.is_initialized():
        rank = int(os.environ["RANK"])
        backend = "nccl" if picked.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_fresh_store(rank, size), rank=rank, world_size=size)
    return World(picked, dist.get_rank(), size)


def several() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def leave() -> None:
    """Say good-bye to the other processes."""
    if several():
        dist.destroy_process_group()


def _fresh_store(rank: int, size: int) -> dist.Store:
    """Where processes find each other's addresses.

    torchrun hands out one store to all attempts of a run, in which there can be addresses of processes that are dead
    (torch 2.13). So the first process opens one of its own and says where; the others ask until it answers.
    """
    shared, _, _ = next(dist.rendezvous("env://", rank, size))
    host, key = os.environ["MASTER_ADDR"], "vitpose_fast store"
    if rank == 0:
        store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
        shared.set(key, str(store.port))
        return store
    give_up = time.monotonic() + 300
    while True:
        try:
            port = int(shared.get(key))
            return dist.TCPStore(host, port, size, timeout=timedelta(seconds=10), wait_for_workers=False)
        except RuntimeError:  # of an earlier attempt
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)


def job() -> str:
    """What a run started by torchrun is called, the same when torchrun starts it again; "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{name}-{os.getppid()}" if name == "none" else name  # torchrun itself is the parent


def share(module: nn.Module, blocks: list[nn.Module], world: World, parallel: str) -> nn.Module:
    """Make `module` (crops to loss) add up its gradients over all processes; `blocks`: what FSDP gathers at once.

    BatchNorm statistics stay those of each process, as in the official training; the first one's are saved.
    """
    if world.size == 1:
        return module
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    ids = [world.device] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def only_last(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """While computing a micro-batch: gradients are added up over processes with the last one of an update only."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    sync = getattr(module, "set_requires_gradient_sync", None)  # FSDP
    if sync is not None:
        sync(last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A parameter or a piece of optimizer state with all its shares; every process has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be shared out."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
