"""One sweep from its entries to its ranking: what is done already, what shares, who goes on, who failed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydratune.config.aliases import former
from hydratune.experiment.config_hash import config_hash
from hydratune.experiment.job_graph import JobGraph, Node, Unmet
from hydratune.record.claim import claim, wait_for_release
from hydratune.record.run_record import RunRecord
from hydratune.sweep import ranking, rungs, tables
from hydratune.sweep.arrange import Planner
from hydratune.sweep.budget import Budget, Forecast, since_start
from hydratune.sweep.clusters import pool_of
from hydratune.sweep.course import Course, Fixed
from hydratune.sweep.execution import Execution, Outcome
from hydratune.sweep.plan import Entry, Unit, settled
from hydratune.sweep.pool import Places, ending
from hydratune.sweep.prerequisites import after_all, made_by, ready
from hydratune.sweep.rungs import Asynchronous
from hydratune.sweep.screen import SweepScreen
from hydratune.sweep.settings import SweepSettings, seconds_of_budget
from hydratune.sweep.told import Told
from hydratune.sweep.worker import record_failure

PATIENCE = 15.0  # seconds


class SweepRunner:
    """Owns a sweep's directory. A sweeper may hand it jobs several times."""

    def __init__(self, directory: Path, settings: SweepSettings, dry_run: bool, arguments: Sequence[str]) -> None:
        self.directory, self.settings, self.dry_run = directory, settings, dry_run
        self.arguments = list(arguments)
        self.entries: dict[int, Entry] = {}
        self.screen = SweepScreen()
        self._began = time.monotonic() - since_start()  # what was imported and composed is a part of it
        self._before = [p for p in directory.iterdir() if p.name != "multirun.yaml"] if directory.is_dir() else []
        claim(directory)  # until this process ends
        self._pool = pool_of(directory, replace(settings, on="local", wait=True) if dry_run else settings)
        self._planner = Planner(self._pool, settings, dry_run or settings.budget is not None)
        self._graph: JobGraph[bool] = JobGraph(self._do)
        self._told = Told(directory, arguments)
        self._execution = Execution(self._pool, self._planner, settings, self._told, self.screen)
        self.outcomes = self._execution.outcomes
        self._course: dict[str, Any] = self._told.course()
        self._made: list[str] = []  # rows that no job trained
        self._digests: dict[str, str] = {}  # of data sets' files: a folder is listed once, not for every job

    def run(self, entries: Sequence[Entry]) -> Mapping[int, Outcome]:
        """Bring all of them to their end; number -> metric, or why it failed."""
        entries = self._settled(entries)
        self.entries |= {e.number: e for e in entries}
        for entry in entries:
            if entry.error is not None:
                self.outcomes[entry.number] = entry.error
        todo = [e for e in entries if e.job is not None and e.same_as is None and e.number not in self.outcomes]
        if self.dry_run:
            self._show_plan(todo, entries)
            return {e.number: self.outcomes.get(e.number, float("nan")) for e in entries}
        self._write_jobs()
        if self._execution.rule is not None:
            self._never_waiting(todo, self._execution.rule)
        else:
            self._in_step(todo)
        for entry in entries:
            if entry.same_as is not None:
                self.outcomes[entry.number] = self.outcomes[self._twin(entry).number]
        self._told.rank(everything=True)
        return {e.number: self.outcomes[e.number] for e in entries}

    def conclude(self) -> list[str]:
        """Test the winner, write the report, show the table. Returns a sentence for each of these that failed."""
        if self.dry_run or not (self.directory / ranking.SWEEP).is_file():
            self._leave_nothing()
            return []
        try:
            return self._concluded()
        finally:
            self._pool.close()

    def _concluded(self) -> list[str]:
        from hydratune.sweep import report

        ranked = ranking.read(self.directory)
        follows = after_all(ranked, list(self.entries.values()), self.settings, self.directory)
        whys = [(node, self._graph.failure(node)) for node in follows]
        failed = [node.failure.format(why) for node, why in whys if why is not None]
        self._told.rank(everything=True)
        report.write(self.directory)
        report.show(self.directory, self.screen)
        if ranked.winner is not None and (again := ranked.winner.record.again):
            self.screen.line(f"the best job by itself, with the same bits:\n  {again}")
        return failed

    # ---- what needs another one, and what follows all of them

    def _do(self, node: Node) -> bool:
        """A node of the graph, by a worker that has the machine to itself. Raises Unmet where it fails."""
        alone, entries = Places.of(1), node.payload
        if node.kind == "ready":  # all that it needs has been done
            return True
        if node.kind == "test":
            return self._test(entries[0])
        failed = None
        for event in self._pool.run(node.kind, [Unit(entries, alone.threads())], alone):
            self.screen.heard(event)
            failed = event.message.get("failed") or failed
            if event.died:
                failed = failed or ending(event.died)
        if failed is not None:
            raise Unmet(failed)
        if node.kind.startswith(("soup:", "interpolate:")):
            self._made += made_by(node)
            self._write_jobs()
        return True

    def _test(self, winner: Entry) -> bool:
        """Read its test split, once."""
        metric, alone = self.outcomes[winner.number], Places.of(1)
        self._execution.run([Unit([winner], alone.threads())], alone, {}, quiet=True)
        outcome = self.outcomes[winner.number]
        self.outcomes[winner.number] = metric
        if isinstance(outcome, str):
            raise Unmet(outcome)
        return True

    def _unmet(self, entries: Sequence[Entry]) -> dict[int, str]:
        """By number, why entries cannot run. All data is looked at before any pretraining is made."""
        nodes = {e.number: ready(e) for e in entries}
        for need in (need for node in nodes.values() for need in node.needs if need.kind == "check"):
            self._graph.failure(need)
        return {number: why for number, node in nodes.items() if (why := self._graph.failure(node)) is not None}

    # ---- what there is to do

    def _settled(self, entries: Sequence[Entry]) -> list[Entry]:
        """Known again by what they ask for, with `resume=auto`, and asked only once each."""
        known = {p.parent: RunRecord.read(p.parent) for p in self.directory.glob("*/run.json")}
        result = []
        for entry in entries:
            if entry.job is not None:
                try:
                    job, digests = entry.job, self._digests
                    own, before = config_hash(job, digests), config_hash(job, digests, former)
                    job = replace(job.with_config(resume="auto"), config_hash=own, former_hash=before)
                    entry = replace(entry, job=job)
                except Exception as error:
                    entry = replace(entry, job=None, error=f"{error}")
            result.append(entry)
        entries = settled(result, known)
        earlier = {j["directory"]: j.get("numerics") or {} for j in self._told.jobs()}
        for entry in entries:
            self._planner.take_up(entry.number, earlier.get(entry.name, {}), begun=entry.directory in known)
        return entries

    def _twin(self, entry: Entry) -> Entry:
        assert entry.same_as is not None
        return next(e for e in self.entries.values() if e.directory == entry.directory and e.same_as is None)

    # ---- running

    def _train(
        self, entries: Sequence[Entry], until: float | None = None, known: Mapping[int, Any] | None = None
    ) -> None:
        """All of them to their halt, or to their end. until: when it is broken off. known: what they cost."""
        left = self._execution.left(entries)
        if done := len(entries) - len(left):
            self.screen.line(f"{done} of {len(entries)} jobs are as far already")
        failed = self._unmet(left)
        for entry in left:
            if entry.number in failed:
                self._fail(entry, failed[entry.number])
        left = [e for e in left if e.number not in failed]
        if not left:
            return
        for entry in left:
            entry.write_hydra()
        units, places, costs = self._planner.units(left, known)
        units = self._planner.settled(units)
        self._write_jobs()
        wait_for_release(
            [e.directory for e in left], PATIENCE
        )  # workers of a command that was killed end within seconds
        self._execution.run(units, places, costs, until=until)

    def _fail(self, entry: Entry, why: str) -> None:
        assert entry.job is not None
        record_failure(entry.job, why)
        self.outcomes[entry.number] = why

    # ---- halving

    def _in_step(self, todo: list[Entry]) -> None:
        """All of them from halt to halt; whoever is not among the best at one ends there."""
        course = self._course_of(todo)
        for halt in course.halts:
            to_halt = rungs.up_to(todo, halt)
            self._train(to_halt, course.until(halt), course.costs(halt))
            come = {e.number for e in to_halt if self._execution.done(e) is not None}
            if todo and not come:
                todo = self._furthest(todo, halt)
                break
            todo = [e for e in todo if e.number in come]
            factor = course.factor(halt, todo)
            self._remember(course)
            out = rungs.stopped(todo, halt, factor)
            self.screen.line(f"halving at {halt:.0%} of the steps: {len(todo) - len(out)} of {len(todo)} jobs go on")
            todo = [e for e in todo if e.number not in out]
        self._train(todo, course.until(None), course.costs(None))

    def _furthest(self, todo: Sequence[Entry], halt: float) -> list[Entry]:
        """Where time was up before anybody came to a halt, the rest of it is one cell's."""
        alive = [e for e in todo if not isinstance(self.outcomes.get(e.number), str)]
        found = rungs.furthest(alive)
        if found:
            goes = "goes" if len(found) == 1 else "go"
            self.screen.line(f"no job has come to {halt:.0%} of its steps in time: {found[0].name} {goes} on alone")
        return found

    def _course_of(self, todo: Sequence[Entry]) -> Course:
        settings = self.settings
        if settings.budget is None or not todo:
            return Fixed(settings.halving.factor, settings.halving.rungs)
        forecast = Forecast(*self._planner.units(todo))
        left = self._began + seconds_of_budget(settings.budget) - time.monotonic()
        before = self._course if self._course.get("budget") == settings.budget else None
        course = Budget(left, forecast, todo, before)
        self.screen.line(course.sentence(settings.budget))
        self._remember(course)
        return course

    def _remember(self, course: Course) -> None:
        if isinstance(course, Budget):
            self._course = {"budget": self.settings.budget, **course.told()}
            self._write_jobs()

    def _never_waiting(self, entries: Sequence[Entry], rule: Asynchronous) -> None:
        """Each of them as far as it gets; where nobody comes to the end, the best one does."""
        todo = self._execution.further(rule.take_up(entries))
        while todo:
            self._train(todo)
            todo = []
            if all(self._execution.done(e) is None for e in rungs.up_to(self.entries.values(), None)):
                todo = self._execution.further(rule.best(entries))
        numbers = {e.number: e for e in entries}
        for number, why in rule.rest(entries).items():
            rungs.end(numbers[number], why)

    # ---- what is told

    def _write_jobs(self) -> None:
        self._told.write(self.entries.values(), self._planner.numerics, self._made, self._course)

    def _show_plan(self, todo: Sequence[Entry], entries: Sequence[Entry]) -> None:
        left = [e for e in todo if self._execution.done(e) is None]
        units, places, costs = self._planner.units(left) if left else ([], Places.of(self.settings.jobs), {})
        tables.show_plan(self.screen, entries, units, places, costs)

    def _leave_nothing(self) -> None:
        """A dry run writes nothing: what it and Hydra's sweeper made is taken away."""
        if not self._before:
            shutil.rmtree(self.directory, ignore_errors=True)
