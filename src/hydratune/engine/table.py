"""What a trunk gives for every sample, as rows that can be had by number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hydratune.data.padding import one_after_the_other, side_by_side, starts_of, width_of
from hydratune.types import Features, Padded


@dataclass(frozen=True)
class Table:
    """values: [N, ...]; or [S, ...], the rows one after the other, where `lengths` [N] says how long each of them is.

    Padded features are kept without their padding, and get as much of it as the batch needs in which they are read.
    """

    values: Tensor
    lengths: Tensor | None = None

    @cached_property
    def _starts(self) -> Tensor:
        assert self.lengths is not None
        return starts_of(self.lengths)

    def read(self, at: Tensor, device: torch.device) -> Features:
        """Of these rows [B], on the device."""
        at = at.to(self.values.device)
        if self.lengths is None:
            return self.values[at].to(device)
        own = self.lengths[at]
        values = side_by_side(self.values, self._starts[at], own, width_of(own))
        return Padded(*(t.to(device) for t in (values, own, own.new_empty(len(at), 0))))


def as_rows(features: Features) -> Tensor:
    """Features as a table keeps them."""
    return one_after_the_other(features.values, features.lengths) if isinstance(features, Padded) else features
