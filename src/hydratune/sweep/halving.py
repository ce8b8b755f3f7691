"""Successive halving: who goes on at a rung (Jamieson and Talwalkar 2016, arXiv 1502.07943).

Asynchronous: nobody waits for the others at a rung (ASHA; Li et al. 2020, arXiv 1810.05934).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """One job at a rung. cell: its settings but for seed and fold; last_phase: whether nothing new trains any more."""

    number: int
    cell: str
    strategy: str
    value: float  # of validation
    last_phase: bool


def halts(factor: int, rungs: int) -> list[float]:
    """Shares of a job's steps at which it is compared, ascending."""
    return [factor ** -(rungs - i) for i in range(rungs)]


def goes_on(standings: Sequence[Standing], factor: float) -> Mapping[int, str]:
    """Number -> why it stops here; whoever is not named goes on: of each field the best 1 in `factor`, rounded up."""
    result: dict[int, str] = {}
    for name, cells in _fields(standings).items():
        kept = math.ceil(len(cells) / factor)
        among = f" of freeze={name}" if name else ""
        for rank, cell in enumerate(cells[kept:], start=kept + 1):
            for standing in cell:
                result[standing.number] = f"halving: {rank} of {len(cells)}{among}, of which {kept} go on"
    return result


def go_on_already(standings: Sequence[Standing], factor: float) -> list[list[Standing]]:
    """Cells that are among the best 1 in `factor`, rounded down, of what has come to this rung so far; the best first.

    Whoever is not among them waits for more to come.
    """
    return [cell for cells in _fields(standings).values() for cell in cells[: math.floor(len(cells) / factor)]]


def ranked(standings: Sequence[Standing]) -> list[list[Standing]]:
    """By cell, the best first: cells are compared by the mean over their seeds and folds."""
    cells: dict[str, list[Standing]] = {}
    for standing in standings:
        cells.setdefault(standing.cell, []).append(standing)
    return sorted(cells.values(), key=lambda cell: -statistics.fmean(s.value for s in cell))


def _fields(standings: Sequence[Standing]) -> dict[str, list[list[Standing]]]:
    """By field, its cells, the best first.

    Strategies are compared with each other only where no plan has more to thaw: early on, lp_ft *is* head_only.
    """
    together = all(s.last_phase for s in standings)
    fields: dict[str, list[Standing]] = {}
    for standing in standings:
        fields.setdefault("" if together else standing.strategy, []).append(standing)
    return {name: ranked(field) for name, field in fields.items()}
