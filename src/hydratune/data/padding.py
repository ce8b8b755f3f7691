"""Sequences one after the other in one tensor, and the same side by side, filled up on the right."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLE = 16


def rounded(length: int) -> int:
    """To the next multiple of 16.

    Kernels add up a row of attention in lanes; with whole lanes what is filled up changes no bit of a sum, so that a
    sample's features are the same in every batch (checked: fp32 and bf16 on CPUs; 1 and 8 give differences of 1e-6).
    """
    return -(-length // MULTIPLE) * MULTIPLE


def width_of(lengths: Tensor) -> int:
    """Of a batch of such sequences."""
    return rounded(int(lengths.max()))


def inside(lengths: Tensor, width: int) -> Tensor:
    """[B] -> [B, width]: whether a position is a sequence's own, not filled up."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def starts_of(lengths: Tensor) -> Tensor:
    """[N] where each of the sequences begins in the tensor that has them one after the other."""
    return lengths.cumsum(0) - lengths


def side_by_side(flat: Tensor, starts: Tensor, lengths: Tensor, width: int, fill: int = 0) -> Tensor:
    """[S, ...], [B], [B] -> [B, width, ...]; `fill` beyond each sequence's end."""
    beyond = ~inside(lengths, width)
    at = torch.arange(width, device=flat.device)
    found = flat[(starts.unsqueeze(1) + at).masked_fill_(beyond, 0)]
    return found.masked_fill_(beyond.view(*beyond.shape, *[1] * (flat.ndim - 1)), fill)


def one_after_the_other(values: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, ...], [B] -> [S, ...]: the inverse."""
    return values[inside(lengths, values.shape[1])]
