"""One sweep from its entries to its ranking: what is done already, what shares, who goes on, who failed."""

from __future__ import annotations

import json
import shlex
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
from hydratune.record.run import write_json
from hydratune.record.run_record import RunRecord
from hydratune.sweep import halving, ranking, rungs, tables
from hydratune.sweep.arrange import Planner, makespan
from hydratune.sweep.clusters import pool_of
from hydratune.sweep.plan import Entry, Unit, settled
from hydratune.sweep.pool import Event, Places, ending
from hydratune.sweep.prerequisites import after_all, made_by, ready, strategy_of
from hydratune.sweep.screen import SweepScreen
from hydratune.sweep.settings import SweepSettings
from hydratune.sweep.worker import record_failure

Outcome = float | str  # the metric, or why it failed
PATIENCE = 15.0  # seconds


class SweepRunner:
    """Owns a sweep's directory. A sweeper may hand it jobs several times."""

    def __init__(self, directory: Path, settings: SweepSettings, dry_run: bool, arguments: Sequence[str]) -> None:
        self.directory, self.settings, self.dry_run = directory, settings, dry_run
        self.arguments = list(arguments)
        self.entries: dict[int, Entry] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.screen = SweepScreen()
        self._before = [p for p in directory.iterdir() if p.name != "multirun.yaml"] if directory.is_dir() else []
        claim(directory)  # until this process ends
        self._pool = pool_of(directory, replace(settings, on="local", wait=True) if dry_run else settings)
        self._planner = Planner(self._pool, settings, dry_run)
        self._graph: JobGraph[bool] = JobGraph(self._do)
        self._written = 0.0
        self._made: list[str] = []  # rows that no job trained
        self._retried: set[int] = set()  # jobs whose worker has died while it ran them alone
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
        factor = self.settings.halving.factor
        for halt in halving.halts(factor, self.settings.halving.rungs) if factor else ():
            self._train([replace(e, job=replace(e.job, halt=halt)) for e in todo if e.job is not None], halt)
            todo = self._survivors([e for e in todo if not isinstance(self.outcomes.get(e.number), str)], halt)
        self._train(todo, None)
        for entry in entries:
            if entry.same_as is not None:
                self.outcomes[entry.number] = self.outcomes[self._twin(entry).number]
        self._rank(everything=True)
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
        self._rank(everything=True)
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
        self._work([Unit([winner], alone.threads())], alone, {}, quiet=True)
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
        earlier = {j["directory"]: j.get("numerics") or {} for j in self._told_before()}
        for entry in entries:
            self._planner.take_up(entry.number, earlier.get(entry.name, {}), begun=entry.directory in known)
        return entries

    def _done(self, entry: Entry, halt: float | None) -> float | None:
        """The metric of one that is as far as it should be."""
        record = RunRecord.read(entry.directory)
        if entry.job is None or record.config_hash not in (entry.job.config_hash, entry.job.former_hash):
            return None
        if halt is not None:
            return ranking.value_at(record, halt)
        return record.score() if record.status == "complete" else None

    def _twin(self, entry: Entry) -> Entry:
        assert entry.same_as is not None
        return next(e for e in self.entries.values() if e.directory == entry.directory and e.same_as is None)

    # ---- running

    def _train(self, entries: Sequence[Entry], halt: float | None) -> None:
        """All of them to their halt, or to their end."""
        left = []
        for entry in entries:
            metric = self._done(entry, halt)
            if metric is None:
                left.append(entry)
            else:
                self.outcomes[entry.number] = metric
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
        units, places, costs = self._planner.units(left)
        units = self._planner.settled(units)
        self._write_jobs()
        wait_for_release(
            [e.directory for e in left], PATIENCE
        )  # workers of a command that was killed end within seconds
        self._work(units, places, costs)

    def _work(self, units: list[Unit], places: Places, costs: Mapping[int, Any], quiet: bool = False) -> None:
        """Have them run. One whose worker dies starts once more from its checkpoint, alone; one that was alone, too."""
        units = list(units)
        waiting = {e.number: e for u in units for e in u.entries}
        seconds = makespan(units, places, costs)
        with self.screen.running(len(waiting), seconds or None, quiet):
            for event in self._pool.run("train", units, places):
                self.screen.heard(event)
                self._hear(event, units, waiting)
                if self.settings.fail_fast and any(isinstance(o, str) for o in self.outcomes.values()):
                    self._pool.stop()
                    for entry in waiting.values():
                        self.outcomes[entry.number] = "not run: another one failed, and sweep.fail_fast is on"
                    return

    def _hear(self, event: Event, units: list[Unit], waiting: dict[int, Entry]) -> None:
        message = event.message
        if "number" in message and "again" not in message:
            entry = waiting.pop(message["number"])
            failed = message.get("failed")
            self.outcomes[entry.number] = failed if failed is not None else message["metric"]
            self._rank()
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
            self.outcomes[entry.number] = how
            self._rank()

    def _fail(self, entry: Entry, why: str) -> None:
        assert entry.job is not None
        record_failure(entry.job, why)
        self.outcomes[entry.number] = why

    # ---- halving

    def _survivors(self, entries: Sequence[Entry], halt: float) -> list[Entry]:
        assert self.settings.halving.factor is not None
        out = rungs.stopped(entries, halt, self.settings.halving.factor)
        self.screen.line(f"halving at {halt:.0%} of the steps: {len(entries) - len(out)} of {len(entries)} jobs go on")
        return [e for e in entries if e.number not in out]

    # ---- what is told

    def _write_jobs(self) -> None:
        """sweep.json: these jobs, and those of earlier lines with the same directory."""
        path = self.directory / ranking.SWEEP
        jobs = [{**e.told(), "numerics": self._planner.numerics.get(e.number, {})} for e in self.entries.values()]
        jobs += [{"directory": name, "varies": {}, "fixed": {}, "strategy": strategy_of(name)} for name in self._made]
        names = {j["directory"] for j in jobs}
        jobs += [j for j in self._told_before() if j["directory"] not in names]
        keys = list(dict.fromkeys(k for j in jobs for k in j["varies"]))
        for job in jobs:  # one of another line may not have varied what this one does
            job["varies"] = {k: job["varies"].get(k, job["fixed"].get(k, "")) for k in keys}
        write_json(path, {"command": shlex.join(["hydratune", *self.arguments]), "keys": keys, "jobs": jobs})

    def _told_before(self) -> list[dict[str, Any]]:
        path = self.directory / ranking.SWEEP
        return json.loads(path.read_text())["jobs"] if path.is_file() else []

    def _rank(self, everything: bool = False) -> None:
        """The tables, after each job but not more than about once in a second."""
        if everything or time.monotonic() > self._written + 1.0:
            ranking.write_tables(self.directory, ranking.read(self.directory))
            self._written = time.monotonic()

    def _show_plan(self, todo: Sequence[Entry], entries: Sequence[Entry]) -> None:
        left = [e for e in todo if self._done(e, None) is None]
        units, places, costs = self._planner.units(left) if left else ([], Places.of(self.settings.jobs), {})
        tables.show_plan(self.screen, entries, units, places, costs)

    def _leave_nothing(self) -> None:
        """A dry run writes nothing: what it and Hydra's sweeper made is taken away."""
        if not self._before:
            shutil.rmtree(self.directory, ignore_errors=True)
