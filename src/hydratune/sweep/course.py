"""Where the jobs of a sweep are compared on their way, and how many go on there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hydratune.sweep import halving
from hydratune.sweep.plan import Entry


class Course(Protocol):
    @property
    def halts(self) -> Sequence[float]:
        """Shares of a job's steps, ascending."""

    def factor(self, halt: float, entries: Sequence[Entry]) -> float:
        """Of those that have come to this halt, the best 1 in how many goes on."""

    def until(self, halt: float | None) -> float | None:
        """Of time.monotonic(): when the way to this halt, or to the end, is broken off."""

    def costs(self, halt: float | None) -> Mapping[int, Any] | None:
        """What the way there costs, where that is known already."""


class Fixed:
    """As the user says: sweep.halving.factor, or none."""

    def __init__(self, factor: int | None, rungs: int) -> None:
        self._factor = float(factor or 1)
        self.halts = halving.halts(factor, rungs) if factor else []

    def factor(self, halt: float, entries: Sequence[Entry]) -> float:
        return self._factor

    def until(self, halt: float | None) -> float | None:
        return None

    def costs(self, halt: float | None) -> Mapping[int, Any] | None:
        return None
