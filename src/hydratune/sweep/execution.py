"""Has the units of a sweep run: hears what becomes of their jobs, and starts again what died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydratune.record.run_record import RunRecord
from hydratune.sweep import ranking, rungs
from hydratune.sweep.arrange import Planner, makespan
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Event, Places, Pool, ending
from hydratune.sweep.rungs import Asynchronous
from hydratune.sweep.screen import SweepScreen
from hydratune.sweep.settings import SweepSettings
from hydratune.sweep.shared import SharedPool
from hydratune.sweep.told import Told
from hydratune.sweep.worker import record_failure

Outcome = float | str  # the metric, or why it failed


class Execution:
    """outcomes: by number, of every job that is as far as it should be."""

    def __init__(
        self, pool: Pool | SharedPool, planner: Planner, settings: SweepSettings, told: Told, screen: SweepScreen
    ) -> None:
        halved = settings.halving
        self.outcomes: dict[int, Outcome] = {}
        self.rule: Asynchronous | None = None  # of who goes on while others run
        if halved.factor is not None and halved.asynchronous:
            self.rule = Asynchronous(halved.factor, halved.rungs)
        self._pool, self._planner, self._settings, self._told, self._screen = pool, planner, settings, told, screen
        self._retried: set[int] = set()  # jobs whose worker has died while it ran them alone
        self._held: set[int] = set()  # jobs that a worker has, which keeps their directories until all of its are done
        self._further: list[Entry] = []  # may go on as soon as nobody holds them

    def left(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those that are not as far as they should be; of the others the outcome is known."""
        left = []
        for entry in entries:
            metric = self.done(entry)
            if metric is None:
                left.append(entry)
            else:
                self.outcomes[entry.number] = metric
        return left

    def done(self, entry: Entry) -> float | None:
        """The metric of one that is as far as it should be."""
        record = RunRecord.read(entry.directory)
        if entry.job is None or record.config_hash not in (entry.job.config_hash, entry.job.former_hash):
            return None
        if entry.job.halt is not None:
            return ranking.value_at(record, entry.job.halt)
        return record.score() if record.status == "complete" else None

    def run(
        self, units: list[Unit], places: Places, costs: Mapping[int, Any], quiet: bool = False,
        until: float | None = None,
    ) -> None:  # fmt: skip
        """Have them run. One whose worker dies starts once more from its checkpoint, alone; one that was alone, too."""
        units = list(units)
        waiting = {e.number: e for u in units for e in u.entries}
        self._held = set(waiting)
        seconds = makespan(units, places, costs)
        with self._screen.running(len(waiting), seconds or None, quiet):
            for event in self._pool.run("train", units, places, until):
                self._screen.heard(event)
                self._hear(event, units, waiting)
                if self._settings.fail_fast and any(isinstance(o, str) for o in self.outcomes.values()):
                    self._pool.stop()
                    for entry in waiting.values():
                        self.outcomes[entry.number] = "not run: another one failed, and sweep.fail_fast is on"
                    return
        for entry in waiting.values():  # time is up
            last = rungs.end(entry, f"sweep.budget={self._settings.budget} was spent")
            self.outcomes[entry.number] = float("nan") if last is None else last

    def _hear(self, event: Event, units: list[Unit], waiting: dict[int, Entry]) -> None:
        message = event.message
        if "number" in message and "again" not in message:
            entry = waiting.pop(message["number"])
            failed = message.get("failed")
            self._ended(entry, failed if failed is not None else message["metric"])
        if event.died is None:
            return
        left = [e for e in event.unit.entries if e.number in waiting]
        again = left if len(event.unit.entries) > 1 else [e for e in left if e.number not in self._retried]
        if len(event.unit.entries) == 1:  # perhaps somebody else's fault, such as the memory that another one took
            self._retried.update(e.number for e in again)
        units += [replace(event.unit, entries=[e]) for e in again]
        left = [e for e in left if e not in again]
        for entry in left:
            del waiting[entry.number]
            how = ending(event.died)
            assert entry.job is not None
            record_failure(entry.job, f"{how}\n\n{self._pool.log_of(event.unit)}")
            self._ended(entry, how)
        self._send_on(event.unit, units, waiting)

    def _ended(self, entry: Entry, outcome: Outcome) -> None:
        """One is as far as it should be, or has failed."""
        self.outcomes[entry.number] = outcome
        self._told.rank()
        if self.rule is not None:
            lost = isinstance(outcome, str)
            self._further += self.further(self.rule.lost(entry) if lost else self.rule.heard(entry))

    def _send_on(self, done: Unit, units: list[Unit], waiting: dict[int, Entry]) -> None:
        """A worker is through: whoever goes on and is held by nobody is run."""
        self._held -= {e.number for e in done.entries} - waiting.keys()
        free = [e for e in self._further if e.number not in self._held]
        self._further = [e for e in self._further if e.number in self._held]
        units += [self._planner.alone(e) for e in free]
        waiting |= {e.number: e for e in free}
        self._held |= {e.number for e in free}
        self._screen.more(len(free))

    def further(self, entries: Sequence[Entry]) -> list[Entry]:
        """Of those that go on, and those that go on because they did, the ones that have something left to do."""
        assert self.rule is not None
        left, queue = [], list(entries)
        while queue:
            entry = queue.pop(0)
            if self.left([entry]):
                left.append(entry)
            else:
                queue += self.rule.heard(entry)
        return left
