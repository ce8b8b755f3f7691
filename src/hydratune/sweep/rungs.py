"""Rungs of successive halving: how the jobs stand there, which of them go on, and which of them end."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hydratune.record.run import write_record
from hydratune.record.run_record import RunRecord
from hydratune.sweep import grid, halving, ranking
from hydratune.sweep.halving import Standing
from hydratune.sweep.plan import Entry


def up_to(entries: Iterable[Entry], halt: float | None) -> list[Entry]:
    """Entries that train as far as this share of their steps; None: to their end."""
    return [replace(e, job=replace(e.job, halt=halt)) for e in entries if e.job is not None]


def cell_of(entry: Entry) -> str:
    """Its settings but for seed and fold."""
    return json.dumps(grid.cell_of(entry.varies))


def standing(entry: Entry, halt: float) -> Standing | None:
    """How it stands at this share of its steps; None where it has not come so far."""
    record = RunRecord.read(entry.directory)
    value = ranking.value_at(record, halt)
    if value is None or record.num_steps is None:
        return None
    assert entry.job is not None
    last = halt * record.num_steps > (record.last_phase or 0)
    return Standing(entry.number, cell_of(entry), entry.job.choices.get("freeze", ""), value, last)


def stopped(entries: Sequence[Entry], halt: float, factor: float) -> Mapping[int, str]:
    """By their numbers the entries that end at this share of their steps, and why; their records say so."""
    standings = [found for e in entries if (found := standing(e, halt)) is not None]
    out = {number: f"{why}, at {halt:.0%} of its steps" for number, why in halving.goes_on(standings, factor).items()}
    for entry in entries:
        if entry.number in out:
            end(entry, out[entry.number])
    return out


def furthest(entries: Sequence[Entry]) -> list[Entry]:
    """The cell that has come furthest, by its last evaluations; of several the best one."""
    cells: dict[str, list[Entry]] = {}
    for entry in entries:
        cells.setdefault(cell_of(entry), []).append(entry)
    return max(cells.values(), key=_come, default=[])


def _come(cell: Sequence[Entry]) -> tuple[float, float]:
    """(the step that all of them have come to, their mean there)"""
    last = [found[-1] if (found := RunRecord.read(e.directory).history) else (0, -math.inf) for e in cell]
    return min(step for step, _ in last), statistics.fmean(value for _, value in last)


def end(entry: Entry, why: str) -> float | None:
    """Its record says that it was stopped, and why. Returns its last evaluation, if there is one."""
    record = RunRecord.read(entry.directory)
    if record.exists and record.status != "complete":
        write_record(entry.directory, record.changed(status="stopped", stopped=why, error=None))
    return record.history[-1][1] if record.history else None


class Asynchronous:
    """Who goes on without waiting for the others: whoever is among the best 1 in `factor` of those that came so far.

    A sweeper such as Optuna brings more jobs later. They are compared with all that have come to the same rung, so that
    what is hopeless is stopped early.
    """

    def __init__(self, factor: int, rungs: int) -> None:
        self.factor, self.halts = factor, halving.halts(factor, rungs)
        self._standings: list[dict[int, Standing]] = [{} for _ in self.halts]
        self._gone: list[set[int]] = [set() for _ in self.halts]  # numbers of those that went on from each rung
        self._entries: dict[int, Entry] = {}

    def take_up(self, entries: Sequence[Entry]) -> list[Entry]:
        """New ones, each to train as far as the first rung."""
        self._entries |= {entry.number: entry for entry in entries}
        return [self._to(entry, 0) for entry in entries]

    def heard(self, entry: Entry) -> list[Entry]:
        """This one has come to its halt. Returns who goes on now, it or others."""
        assert entry.job is not None
        if entry.job.halt is not None:
            found = standing(entry, entry.job.halt)
            assert found is not None, entry.name
            self._standings[self.halts.index(entry.job.halt)][entry.number] = found
        return self._promoted()

    def lost(self, entry: Entry) -> list[Entry]:
        """This one has failed: nobody waits for it."""
        self._entries.pop(entry.number)
        for standings in self._standings:
            standings.pop(entry.number, None)
        return self._promoted()

    def best(self, among: Sequence[Entry]) -> list[Entry]:
        """Where nobody goes on by the rule, and yet one should: the best cell of the highest rung that is reached."""
        own = {entry.number for entry in among} & self._entries.keys()
        for rung in reversed(range(len(self.halts))):
            waiting = [s for n, s in self._standings[rung].items() if n in own - self._gone[rung]]
            if waiting:
                return self._go_on(rung, halving.ranked(waiting)[0])
        return []

    def rest(self, among: Sequence[Entry]) -> dict[int, str]:
        """By number, why these end where they are; those that went all the way are not among them."""
        result = {}
        for number in {entry.number for entry in among} & self._entries.keys():
            at = max((r for r, known in enumerate(self._standings) if number in known), default=None)
            if at is None or number in self._gone[at]:
                continue
            values = [s.value for s in self._standings[at].values()]
            rank = 1 + sum(value > self._standings[at][number].value for value in values)
            result[number] = f"halving: {rank} of {len(values)} at {self.halts[at]:.0%} of its steps"
        return result

    def _promoted(self) -> list[Entry]:
        sizes = Counter(cell_of(entry) for entry in self._entries.values())
        result = []
        for rung in reversed(range(len(self.halts))):  # those that are furthest first
            come = self._standings[rung].values()
            seeds = Counter(s.cell for s in come)
            whole = [s for s in come if seeds[s.cell] == sizes[s.cell]]
            for cell in halving.go_on_already(whole, self.factor):
                result += self._go_on(rung, cell)
        return result

    def _go_on(self, rung: int, cell: Sequence[Standing]) -> list[Entry]:
        new = [s.number for s in cell if s.number not in self._gone[rung]]
        self._gone[rung].update(new)
        return [self._to(self._entries[number], rung + 1) for number in new]

    def _to(self, entry: Entry, rung: int) -> Entry:
        assert entry.job is not None
        return replace(entry, job=replace(entry.job, halt=self.halts[rung] if rung < len(self.halts) else None))
