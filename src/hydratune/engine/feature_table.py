"""What a trunk gives for every sample, as rows that can be had by number: one table for each leaf of the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hydratune.core.ragged import one_after_the_other, side_by_side, starts_of, width_of
from hydratune.core.types import Features, Padded

LEAF = tree_flatten(0)[1]  # of features that are one tensor


@dataclass(frozen=True)
class Table:
    """leaves: [N, ...] each, of which `form` makes features again; or one [S, ...], the rows one after the other, where
    `lengths` [N] says how long each of them is.

    Padded features are kept without their padding, and get as much of it as the batch needs in which they are read.
    """

    leaves: Sequence[Tensor]
    form: TreeSpec
    lengths: Tensor | None = None

    @cached_property
    def _starts(self) -> Tensor:
        assert self.lengths is not None
        return starts_of(self.lengths)

    def read(self, at: Tensor, device: torch.device) -> Features:
        """Of these rows [B], on the device."""
        at = at.to(self.leaves[0].device)
        if self.lengths is None:
            return tree_unflatten([leaf[at].to(device) for leaf in self.leaves], self.form)
        own = self.lengths[at]
        values = side_by_side(self.leaves[0], self._starts[at], own, width_of(own))
        return Padded(*(t.to(device) for t in (values, own, own.new_empty(len(at), 0))))


def as_rows(features: Features) -> list[Tensor]:
    """Features as tables keep them."""
    if isinstance(features, Padded):
        return [one_after_the_other(features.values, features.lengths)]
    return tree_flatten(features)[0]


def form_of(features: Features) -> TreeSpec:
    return tree_flatten(features.values if isinstance(features, Padded) else features)[1]
