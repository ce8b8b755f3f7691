"""Where memory runs out: the same samples in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hydratune.types import Features


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out, of a GPU or of the machine."""
    said = str(error)
    words = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, RuntimeError | MemoryError) and any(w in said for w in words)


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
    return _joined(parts)


def rows(features: Features, first: int, last: int) -> Features:
    """Samples [first, last) of every tensor."""
    return tree_map(lambda t: t[first:last], features)


def _joined(parts: Sequence[Features]) -> Features:
    leaves, shape = zip(*(tree_flatten(p) for p in parts), strict=True)
    together: list[Any] = [torch.cat(t) if isinstance(t[0], Tensor) else t[0] for t in zip(*leaves, strict=True)]
    return tree_unflatten(together, shape[0])
