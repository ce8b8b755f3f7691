"""How much of a sweep fits into a time: at which shares of their steps its jobs are halved, and how hard."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune.record.screen import duration
from hydratune.sweep.arrange import makespan
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Places
from hydratune.sweep.rungs import cell_of

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 1e9)
MARGIN = 1.15  # a forecast may be that much too short
LAST = 0.08  # of the budget, at most 30 seconds: the winner's test, the report


def since_start() -> float:
    """Seconds since this process began; where the system does not tell, those that it has computed."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        passed = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        passed = 0.0
    return max(passed, time.process_time())


@dataclass(frozen=True)
class Forecast:
    """What is left of jobs, from one share of their steps to another, would take."""

    units: Sequence[Unit]
    places: Places
    costs: Mapping[int, Any]

    def seconds(self, numbers: set[int], first: float, last: float) -> float:
        parts = [Unit([e for e in u.entries if e.number in numbers], u.threads) for u in self.units]
        costs = {number: part_of(cost, first, last) for number, cost in self.costs.items() if number in numbers}
        return makespan([u for u in parts if u.entries], self.places, costs)

    def kept(self, cells: Mapping[str, Sequence[Entry]], halt: float, factor: float) -> dict[str, Sequence[Entry]]:
        """Of the cells so many as `factor` leaves: the dearest, as nobody knows which ones they will be."""
        fields: dict[str, list[str]] = {}
        together = all(halt > self._last_phase(e) for cell in cells.values() for e in cell)
        for name, cell in cells.items():
            assert cell[0].job is not None
            fields.setdefault("" if together else cell[0].job.choices.get("freeze", ""), []).append(name)
        result: dict[str, Sequence[Entry]] = {}
        for names in fields.values():
            dearest = sorted(names, key=lambda name: -sum(self._alone(e) for e in cells[name]))
            result |= {name: cells[name] for name in dearest[: math.ceil(len(names) / factor)]}
        return result

    def _alone(self, entry: Entry) -> float:
        cost = self.costs.get(entry.number, {})
        return float(cost["seconds"]["whole"]) if "seconds" in cost else 0.0

    def _last_phase(self, entry: Entry) -> float:
        """The share of its steps from which on it trains nothing new."""
        cost = self.costs.get(entry.number, {})
        return cost["seconds"]["last_phase"] / cost["seconds"]["steps"] if "seconds" in cost else 0.0

    @property
    def looks(self) -> int:
        """The fewest evaluations that a job has: there are no more halts than that."""
        return min((c["seconds"]["looks"] for c in self.costs.values() if "seconds" in c), default=1)


def part_of(cost: Mapping[str, Any], first: float, last: float) -> dict[str, Any]:
    """What a job costs from one share of its steps to another."""
    if "seconds" not in cost:
        return dict(cost)
    own = cost["seconds"]
    done, steps = max(own["done"], first * own["steps"]), last * own["steps"]
    whole = max(own["steps"] - own["done"], 1)
    looks = own["looks"] * max(steps - done, 0.0) / whole
    return {**cost, "seconds": {**own, "done": done, "steps": steps, "looks": looks}}


class Budget:
    """The halts of a sweep that has so many seconds, and who is left at each, chosen when it is reached.

    A forecast is made of steps that were timed before anything trained. How wrong it was is seen at the first halt, and
    from there on taken into account.
    """

    def __init__(
        self, seconds: float, forecast: Forecast, entries: Sequence[Entry], before: Mapping[str, Any] | None = None
    ) -> None:
        """seconds: that are left. before: what was told of an earlier command with the same budget."""
        now = time.monotonic()
        self.deadline = now + seconds - min(LAST * seconds, 30.0)
        self.forecast, self.cells = forecast, _cells(entries)
        self.slower = 1.0  # than forecast
        self.halts, self.planned, self.fits = self._planned(self.deadline - now)
        if before:
            self.halts, self.planned = list(before["halts"]), float(before["planned"])
        self.factors: dict[str, float] = dict(before["factors"]) if before else {}  # of the halts that are behind
        self._since, self._share = now, 0.0

    def until(self, halt: float | None) -> float:
        """When the way to this halt is broken off at the latest: one cell should still come to its end, and where that
        is hopeless, the way there has its share of the time.
        """
        if halt is None or not self.cells:
            return self.deadline
        one = self.forecast.kept(self.cells, 1.0, FACTORS[-1])
        rest = MARGIN * self.slower * self.forecast.seconds(_numbers(one), halt, 1.0)
        there = MARGIN * self.slower * self.forecast.seconds(_numbers(self.cells), self._share, halt)
        now = time.monotonic()
        return max(self.deadline - rest, now + (self.deadline - now) * there / max(there + rest, 1e-9))

    def costs(self, halt: float | None) -> Mapping[int, Any]:
        end = 1.0 if halt is None else halt
        return {number: part_of(cost, self._share, end) for number, cost in self.forecast.costs.items()}

    def factor(self, halt: float, entries: Sequence[Entry]) -> float:
        """As many go on as time is left for, and as went on there in an earlier command."""
        now = time.monotonic()
        foreseen = self.forecast.seconds({e.number for e in entries}, self._share, halt)
        if foreseen > 1.0:
            self.slower = min(max((now - self._since) / foreseen, 0.5), 50.0)
        self.cells = _cells(entries)
        self._since, self._share = now, halt
        later = [h for h in self.halts if h > halt]
        fitting = (f for f in FACTORS if self._total(halt, f, later, f) <= self.deadline - now)
        return self.factors.setdefault(f"{halt:.6f}", next(fitting, FACTORS[-1]))

    def sentence(self, budget: str) -> str:
        """What is going to be done, in words."""
        whole, jobs = duration(self._total(0.0, 1.0, [], 1.0)), len(_numbers(self.cells))
        said = f"sweep.budget={budget}: {jobs} jobs would take about {whole} in full"
        shares = " and ".join(f"{halt:.0%}" for halt in self.halts)
        if self.planned > 1:
            said += f"; at {shares} of the steps about 1 in {self.planned:g} goes on"
        elif self.halts:
            said += f"; at {shares} of the steps it is seen whether all can go on"
        return said if self.fits else f"{said}, which is more than there is; as much is done as fits"

    def told(self) -> dict[str, Any]:
        """As sweep.json keeps it."""
        return {"halts": self.halts, "planned": self.planned, "factors": self.factors}

    def _planned(self, seconds: float) -> tuple[list[float], float, bool]:
        """(halts, the factor at each, whether that should fit): of what fits, what uses most of the time."""
        found = []
        whole = self._total(0.0, 1.0, [], 1.0)
        if whole <= 0.4 * seconds:
            return [], 1.0, True
        for factor in (1.0, 2.0, 3.0, 4.0, 6.0, 8.0):
            for count in range(1, 4):
                halts = [max(factor, 3) ** -(count - i) for i in range(count)]
                if halts[0] * self.forecast.looks >= 1 - 1e-9:
                    found.append((self._total(0.0, 1.0, halts, factor), halts, factor))
        found.append((whole, [], 1.0))  # where there is but one evaluation
        fitting = [f for f in found if f[0] <= seconds]
        most, halts, factor = max(fitting, key=lambda f: f[0]) if fitting else min(found, key=lambda f: f[0])
        return halts, factor, most <= seconds

    def _total(self, share: float, cut: float, halts: Sequence[float], factor: float) -> float:
        """Seconds from this share of the steps to the end: 1 in `cut` goes on here, 1 in `factor` at each halt."""
        cells, total = self.forecast.kept(self.cells, share, cut), 0.0
        for halt in halts:
            total += self.forecast.seconds(_numbers(cells), share, halt)
            cells, share = self.forecast.kept(cells, halt, factor), halt
        return MARGIN * self.slower * (total + self.forecast.seconds(_numbers(cells), share, 1.0))


def _cells(entries: Sequence[Entry]) -> dict[str, Sequence[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(cell_of(entry), []).append(entry)
    return dict(found)


def _numbers(cells: Mapping[str, Sequence[Entry]]) -> set[int]:
    return {e.number for cell in cells.values() for e in cell}
