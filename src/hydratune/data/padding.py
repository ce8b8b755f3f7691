"""Sequences one after the other in one tensor, and the same side by side, filled up on the right."""

from __future__ import annotations

import torch
from torch import Tensor


def starts_of(lengths: Tensor) -> Tensor:
    """[N] where each of the sequences begins in the tensor that has them one after the other."""
    return lengths.cumsum(0) - lengths


def side_by_side(flat: Tensor, starts: Tensor, lengths: Tensor, width: int, fill: int = 0) -> Tensor:
    """[S, ...], [B], [B] -> [B, width, ...]; `fill` beyond each sequence's end."""
    at = torch.arange(width, device=flat.device)
    inside = at < lengths.unsqueeze(1)
    found = flat[(starts.unsqueeze(1) + at).masked_fill_(~inside, 0)]
    return found.masked_fill_(~inside.view(*inside.shape, *[1] * (flat.ndim - 1)), fill)


def one_after_the_other(values: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, ...], [B] -> [S, ...]: the inverse."""
    return values[torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(1)]
