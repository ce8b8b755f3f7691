"""The processes that torchrun has started as one run, and tensors of which each of them has a share."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch


def launched() -> dict[str, int]:
    """{rank, world} as torchrun says them; {} in a process of one's own."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    return {"rank": int(os.environ.get("RANK", 0)), "world": world} if world > 1 else {}


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Within it the processes that torchrun started can talk to each other: gloo on CPUs, NCCL among GPUs."""
    if not launched():
        yield
        return
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    _die_with_parent()
    # The first one may wait for long, for a pretraining that another job makes; a dead one is noticed at once.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=24))
    try:
        yield
    finally:
        if sys.exc_info()[0] is None:  # others may be waiting for this one, and would wait on
            distributed.barrier()
        distributed.destroy_process_group()


def _die_with_parent() -> None:
    """SIGTERM when torchrun dies: a process left behind would hold the run's directory."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG of linux/prctl.h


def from_first(text: str) -> str:
    """Rank 0's text, on every rank."""
    from torch import distributed

    content = torch.frombuffer(bytearray(f" {text}".encode()), dtype=torch.uint8)  # none is no buffer
    size = torch.tensor(len(content))
    distributed.broadcast(size, 0)
    if distributed.get_rank():
        content = torch.empty(int(size), dtype=torch.uint8)
    distributed.broadcast(content, 0)
    return content.numpy().tobytes().decode()[1:]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which each rank has a share; every rank must ask."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's share of it, in place; the tensor itself where each rank has all."""
    share = getattr(tensor, "to_local", None)
    return tensor if share is None else share()


def like(own: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, or this rank's share of it where `own` is one of its like."""
    if local(own) is own or local(value) is not value:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)  # type: ignore[attr-defined]


@torch.no_grad()
def assign(own: torch.Tensor, value: torch.Tensor) -> None:
    """`own` becomes `value`, or its share of that."""
    own.copy_(like(own, value))
