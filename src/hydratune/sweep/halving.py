"""Successive halving: who goes on at a rung (Jamieson and Talwalkar 2016, arXiv 1502.07943)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """One job at a rung. cell: its settings but for the seed; last_phase: whether its plan has come to its last."""

    number: int
    cell: str
    strategy: str
    value: float  # of validation
    last_phase: bool


def halts(factor: int, rungs: int) -> list[float]:
    """Shares of a job's steps at which it is compared, ascending."""
    return [factor ** -(rungs - i) for i in range(rungs)]


def goes_on(standings: Sequence[Standing], factor: int) -> Mapping[int, str]:
    """Number -> why it stops here; whoever is not named goes on.

    Cells are compared by the mean over their seeds. Strategies are compared with each other only where every plan is in
    its last phase: early on, lp_ft *is* head_only.
    """
    together = all(s.last_phase for s in standings)
    fields: dict[str, dict[str, list[Standing]]] = {}
    for standing in standings:
        field = fields.setdefault("" if together else standing.strategy, {})
        field.setdefault(standing.cell, []).append(standing)
    result: dict[int, str] = {}
    for name, cells in fields.items():
        ranked = sorted(cells, key=lambda c: -statistics.fmean(s.value for s in cells[c]))
        kept = math.ceil(len(ranked) / factor)
        among = f" of freeze={name}" if name else ""
        for rank, cell in enumerate(ranked[kept:], start=kept + 1):
            for standing in cells[cell]:
                result[standing.number] = f"halving: {rank} of {len(ranked)}{among}, of which {kept} go on"
    return result
