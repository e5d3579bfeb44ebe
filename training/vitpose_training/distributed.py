"""Distributed training under torchrun: ranks, collectives, and how the model is replicated or sharded."""

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
    """The processes of a run, as seen by one of them. A single process is a world of size 1 and never communicates."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor of any shape over all processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in rank order."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def agree(self, function: Callable[[], Any]) -> Any:
        """Call `function` in every process and return its result; if it fails in one process, fail in all of them.

        Failures are ValueError, OSError and ImportError. A process that fails raises its own error; the others raise
        the message of the lowest rank that failed.

        Raises:
            ValueError: the function failed in another process.
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
        """Overwrite tensors in place with the values of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def join(device: str | None) -> World:
    """Join the process group that torchrun describes in the environment; without torchrun, return a world of size 1.

    Args:
        device: "cpu", "cuda" or, in a single process only, "cuda:N". None means CUDA if available, else CPU. Of several
            processes on CUDA, each uses the GPU of its local rank.

    Raises:
        ValueError: the device cannot be used.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(pick_device(device))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is not None and device.startswith("cuda:"):
        raise ValueError(f"got --device {device} for {size} processes, expected cuda: each process uses its own GPU")
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
    """Return whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def leave() -> None:
    """Shut down the process group, if there is one."""
    if several():
        dist.destroy_process_group()


def _fresh_store(rank: int, size: int) -> dist.Store:
    """Open the store in which the processes of this attempt exchange their addresses.

    torchrun gives all attempts (restarts) of a run the same store, which may still hold addresses of dead processes
    (torch 2.13). Rank 0 therefore opens a new store and publishes its port in the shared one; the other ranks retry for
    up to 5 minutes until they can connect.
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
        except RuntimeError:  # the port is still that of an earlier attempt
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)


def job() -> str:
    """Return an identifier of the torchrun job that survives torchrun's restarts; "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{name}-{os.getppid()}" if name == "none" else name  # the parent process is torchrun itself


def share(module: nn.Module, blocks: list[nn.Module], world: World, parallel: str) -> nn.Module:
    """Wrap `module`, which computes the loss, so that its gradients are averaged over all processes.

    Every process keeps its own BatchNorm statistics, as in the official training; those of rank 0 are saved.

    Args:
        blocks: the submodules that FSDP gathers one at a time.
        parallel: "ddp" replicates the model, "fsdp" shards it (FSDP2).

    Returns:
        The wrapped module; `module` itself in a world of size 1 and under FSDP, which shards it in place.
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
    """Return a context for one micro-batch that reduces gradients over processes only if it is the `last` of its step.

    The gradients of the earlier micro-batches accumulate locally.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    sync = getattr(module, "set_requires_gradient_sync", None)  # FSDP
    if sync is not None:
        sync(last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """Return a parameter or optimizer state unsharded. If it is sharded, every process must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Copy an unsharded tensor into `target`, which may be sharded."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
