"""Sequences one after the other in one tensor, and the same side by side, filled up on the right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MULTIPLE = 16


class Ragged(NamedTuple):
    """A varying number of parts per sample: words, boxes, polygons. All samples' parts lie one after the other."""

    values: Tensor  # [S, ...]
    lengths: Tensor  # [B] int64, which add up to S

    def rows(self, first: int, last: int) -> Ragged:
        """Samples [first, last), as a slice has them."""
        lengths = self.lengths[first:last]
        start = int(self.lengths[:first].sum())
        return Ragged(self.values[start : start + int(lengths.sum())], lengths)

    def selected(self, index: Tensor) -> Ragged:
        """The samples `index` [B], in that order."""
        lengths = self.lengths[index]
        total = int(lengths.sum())
        inner = torch.arange(total, device=lengths.device) - starts_of(lengths).repeat_interleave(lengths)
        return Ragged(self.values[starts_of(self.lengths)[index].repeat_interleave(lengths) + inner], lengths)

    def of(self, sample: int) -> Tensor:
        """The parts of one sample."""
        return self.rows(sample, sample + 1).values


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
