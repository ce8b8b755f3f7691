"""Where memory runs out: the same samples in smaller parts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hydratune.core.batching import joined, rows
from hydratune.core.types import Features


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out, of a GPU or of the machine."""
    message = str(error)
    words = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, RuntimeError | MemoryError) and any(w in message for w in words)


def make_room() -> None:
    """Give back what the allocator keeps of what has failed."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_parts(run: Callable[[Features], Features], features: Features, count: int) -> Features:
    """`run(features)` of `count` samples, in halves (and halves of those) where memory does not hold the whole.

    count: 0 where it must not be divided.
    """
    try:
        return run(features)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error) or count < 2:
            raise
    make_room()  # outside the handler: the error's traceback would keep what has filled the memory
    half = count // 2
    parts = [in_parts(run, rows(features, a, b), b - a) for a, b in ((0, half), (half, count))]
    return joined(parts)
