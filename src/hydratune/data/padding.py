"""Sequences one after the other in one tensor, and the same side by side, filled up on the right."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLE = 16


def width_of(lengths: Tensor) -> int:
    """Of a batch of such sequences: a multiple of 16, which the longest fits in.

    Kernels add up a row of attention in lanes; with whole lanes what is filled up changes no bit of a sum, so that a
    sample's features are the same in every batch (checked: fp32 and bf16 on CPUs; 1 and 8 give differences of 1e-6).
    """
    return -(-int(lengths.max()) // MULTIPLE) * MULTIPLE


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
