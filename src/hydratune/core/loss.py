"""A loss as named terms, each a sum and a count, so that ragged batches are exact over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """sum over what is counted, as a scalar; count: an int, or a scalar tensor that the device knows."""

    sum: Tensor
    count: int | Tensor
    weight: float = 1.0  # in the total

    def mean(self) -> Tensor:
        """0 where nothing is counted."""
        if isinstance(self.count, int):
            return self.sum / self.count if self.count else self.sum * 0
        return self.sum / divisor(self.count)


@dataclass(frozen=True)
class Loss:
    """What trains is the weighted total of the terms' means; each of several is logged by its name."""

    terms: Mapping[str, Term]

    @staticmethod
    def of(sum: Tensor, count: int | Tensor) -> Loss:
        """Of one term."""
        return Loss({"loss": Term(sum, count)})

    def mean(self) -> Tensor:
        return weighted([(term.weight, term.mean()) for term in self.terms.values()])

    def total(self) -> Tensor:
        """The weighted total of the sums: proportional to the mean where all terms count the same."""
        return weighted([(term.weight, term.sum) for term in self.terms.values()])

    def means(self) -> dict[str, Tensor]:
        """By name, apart from the graph; empty where there is but one."""
        return {name: term.mean().detach() for name, term in self.terms.items()} if len(self.terms) > 1 else {}


def divisor(count: Tensor) -> Tensor:
    """A count, which may be a sum of weights below 1; 1 where nothing is counted."""
    return count.where(count > 0, 1)


def weighted(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Their weighted sum; one of weight 1 is itself."""
    scaled = [part if weight == 1.0 else weight * part for weight, part in parts]
    return scaled[0] if len(scaled) == 1 else torch.stack(scaled).sum()
