"""Which worker runs which jobs, and what they compute with: threads, precision, layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hydratune.sweep.estimate_costs import predicted, seconds_of, seconds_together, sped_up
from hydratune.sweep.plan import ALL_CORES, Entry, Unit, companies, heads_alone, shared_out
from hydratune.sweep.pool import Places, Pool
from hydratune.sweep.settings import SweepSettings
from hydratune.sweep.shared import SharedPool


class Planner:
    """numerics: by a job's number, the threads and the precision that are its own from the first plan on.

    Its last bits depend on them, so neither a clock nor how much of a sweep is left decides them.
    """

    def __init__(self, pool: Pool | SharedPool, settings: SweepSettings, measures: bool) -> None:
        """measures: whether costs are wanted in any case, to be shown."""
        self._pool, self._settings, self._measures = pool, settings, measures
        self.numerics: dict[int, dict[str, Any]] = {}

    def take_up(self, number: int, numerics: Mapping[str, Any], begun: bool) -> None:
        """What was settled in an earlier command; for more threads than there are cores only if the job has begun."""
        if begun or (numerics.get("threads") or 0) <= Places.of(1).cores:
            self.numerics.setdefault(number, dict(numerics))

    def units(
        self, entries: Sequence[Entry], known: Mapping[int, Any] | None = None
    ) -> tuple[list[Unit], Places, dict[int, Any]]:
        """(what each worker runs, with what places, what each job costs where that was asked). known: such costs.

        The threads that a job has are its own from the first plan on, as its last bits depend on them.
        """
        places = Places.of(self._settings.jobs)
        units: list[Unit] = []
        costs: dict[int, Any] = {}
        planned: dict[int | None, list[Entry]] = {}
        for entry in entries:
            assert entry.job is not None
            threads = entry.job.config.threads or self.numerics.get(entry.number, {}).get("threads")
            planned.setdefault(threads, []).append(entry)
        for threads, alike in planned.items():
            found, seen = self._arranged(alike, places, threads, known)
            units, costs = units + found, {**costs, **seen}
        units.sort(key=lambda u: -sum(seconds_of(costs.get(e.number, {})) for e in u.entries))
        return units, places, costs

    def _arranged(
        self, entries: Sequence[Entry], places: Places, threads: int | None, known: Mapping[int, Any] | None
    ) -> tuple[list[Unit], dict[int, Any]]:
        """Units and costs of entries with so many threads each; None: as many as the plan gives them."""
        count = places.count if threads is None else places.at_once(threads)
        groups = [[e] for e in entries] if self._settings.share == "off" else companies(entries)
        costs: dict[int, Any] = {}
        undecided = self._settings.share != "off" and len(groups) < 2 * count and not all(map(heads_alone, groups))
        if known is not None:
            costs = {e.number: known.get(e.number, {}) for e in entries}
        elif (count > 1 and undecided) or self._measures:
            costs = self._estimate(companies(entries), places, threads)
        parts: list[list[Entry]] = []
        for group in groups:
            forks = {e.number: costs.get(e.number, {}).get("fork", 0) for e in group}
            split = costs and undecided
            parts += shared_out(group, count, forks, partial(_work_of, costs), not threads) if split else [group]
        threads = threads or places.threads(len(parts))
        if threads and (before := places.threads()) and threads > before:  # the survey's workers had fewer
            costs = {n: sped_up(c, ALL_CORES * threads / before) for n, c in costs.items()}
        return [Unit(part, threads) for part in parts], costs

    def _estimate(self, groups: Sequence[Sequence[Entry]], places: Places, threads: int | None) -> dict[int, Any]:
        each = threads or places.threads()
        if len(groups) > 1:  # they would disturb each other's probes
            self._autotune([e for group in groups for e in group], each)
        costs: dict[int, Any] = {}
        for event in self._pool.run("estimate", [Unit(g, each) for g in groups], places):
            costs |= {int(n): c for n, c in event.message.get("costs", {}).items()}
        return {e.number: costs.get(e.number, {}) for g in groups for e in g}

    def settled(self, units: Sequence[Unit]) -> list[Unit]:
        """Each job's own threads and, where several workers would try for them side by side, precision and layout."""
        for unit in units:
            for entry in unit.entries:
                if unit.threads is not None:
                    self.numerics.setdefault(entry.number, {})["threads"] = unit.threads
        for threads in {u.threads for u in units} if len(units) > 1 else ():
            self._autotune([e for u in units if u.threads == threads for e in u.entries], threads)
        return [replace(u, entries=[self._with_numerics(e) for e in u.entries]) for u in units]

    def alone(self, entry: Entry) -> Unit:
        """A job that goes on by itself, with what it began with."""
        return self.settled([Unit([entry], self.numerics.get(entry.number, {}).get("threads"))])[0]

    def _with_numerics(self, entry: Entry) -> Entry:
        assert entry.job is not None
        return replace(entry, job=replace(entry.job, numerics=self.numerics.get(entry.number, {})))

    def _autotune(self, entries: Sequence[Entry], threads: int | None) -> None:
        """What entries choose that have chosen nothing yet, once for all alike, one after the other."""
        alike: dict[str, list[Entry]] = {}
        for entry in entries:
            assert entry.job is not None
            config = entry.job.config
            if config.asks_numerics and "precision" not in self.numerics.get(entry.number, {}):
                alike.setdefault(config.numerics_key(), []).append(entry)
        for same in alike.values():
            for event in self._pool.run("autotune", [Unit(same[:1], threads)], Places.of(1)):
                if "precision" in event.message:
                    for entry in same:
                        self.numerics.setdefault(entry.number, {})["precision"] = event.message["precision"]


def makespan(units: Sequence[Unit], places: Places, costs: Mapping[int, Any]) -> float:
    """Seconds until the last of these units is done, each begun by the first worker that is free."""
    count = min((places.at_once(u.threads) for u in units), default=1)
    loads = [0.0] * count
    for unit in units:
        loads[loads.index(min(loads))] += seconds_together([costs.get(e.number, {}) for e in unit.entries])
    return max(loads)


def _work_of(costs: Mapping[int, Any], entries: Sequence[Entry]) -> float:
    """What a plan counts: the same every time, unlike seconds. As many as there are, where nothing is known."""
    known = [costs[e.number]["operations"] for e in entries if "operations" in costs[e.number]]
    return predicted(known) if known else float(len(entries))
