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
    """The processes of a run, as seen by one of them. A single process is a world of size 1 and never communicates.

    `sum`, `gather`, `agree` and `from_first` are collectives: every process must call them, in the same order.

    Attributes:
        device: the device of this process.
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, elementwise and in place, and return it.

        Its shape must be the same in every process.
        """
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in rank order. With several processes, it must be picklable."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, value)
        return out

    def agree(self, function: Callable[[], Any]) -> Any:
        """Call `function` and return the result of this process; if the call fails in one process, raise in all.

        Failures are ValueError, OSError and ImportError. After any other exception the other processes keep waiting.

        Raises:
            ValueError, OSError, ImportError: the call failed in this process; its own error is raised.
            ValueError: it failed in other processes only; the message is the one of the lowest rank that failed.
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
        """Overwrite tensors in place with those of rank 0. The shapes must be the same in every process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def join(device: str | None) -> World:
    """Join the process group that torchrun describes in the environment, and return the world of this process.

    Without torchrun, or if it starts one process only, return a world of size 1 without a process group. Otherwise
    every process must call this.

    Args:
        device: "cpu", "cuda" or, in a single process only, "cuda:N". None means CUDA if available, else CPU. Of several
            processes on CUDA, each uses the GPU of its local rank.

    Raises:
        ValueError: the device cannot be used, or it is "cuda:N" and there are several processes.
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
    """Shut down the process group, if this process has joined one."""
    if several():
        dist.destroy_process_group()


def _fresh_store(rank: int, size: int) -> dist.Store:
    """Open a new key-value store through which the processes exchange their addresses.

    torchrun gives the first start and all restarts of a run the same store, which may still hold the addresses of dead
    processes (torch 2.13). Rank 0 therefore opens a new store, and publishes its port in the store of torchrun. The
    other ranks read the port and connect to the new store.

    Raises:
        RuntimeError: this rank still cannot connect after 5 minutes of retries.
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
        except RuntimeError:  # no port yet, or the port of a store from before the restart
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)


def job() -> str:
    """Return an identifier of the torchrun job; "" without torchrun.

    It is the --rdzv-id or, if none was given, contains the process id of torchrun. Both stay the same when torchrun
    restarts the processes of the job.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{name}-{os.getppid()}" if name == "none" else name  # the parent process is torchrun itself


def share(module: nn.Module, blocks: list[nn.Module], world: World, parallel: str) -> nn.Module:
    """Wrap `module`, which computes the loss, so that its gradients are averaged over all processes.

    Every process must call this. Each process updates its own BatchNorm statistics, as in the official training; this
    function does not synchronize them.

    Args:
        blocks: the submodules whose parameters FSDP gathers one submodule at a time. Unused by DDP.
        parallel: "ddp" replicates the model, "fsdp" shards it (FSDP2).

    Returns:
        A DDP wrapper. In a world of size 1 and under FSDP, `module` itself; FSDP shards its parameters in place.
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
    """Return a context manager for the forward and backward pass of one micro-batch.

    Gradients are averaged over the processes only in the `last` micro-batch of an optimizer step; before, they
    accumulate in each process. Under FSDP the call itself switches the averaging on or off, until the next call.

    Args:
        module: the result of `share`.
        last: whether this is the last micro-batch of its optimizer step.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    sync = getattr(module, "set_requires_gradient_sync", None)  # FSDP
    if sync is not None:
        sync(last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """Return a parameter or optimizer state gathered from all shards, or itself if it is not sharded.

    If it is sharded, every process must call this.
    """
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Copy an unsharded tensor into `target`, in place.

    If `target` is sharded, every process must call this, and the `value` of rank 0 is the one that is copied.

    Raises:
        ValueError: the shapes differ.
    """
    if target.shape != value.shape:
        raise ValueError(f"got a tensor of shape {list(value.shape)}, expected {list(target.shape)}")
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
