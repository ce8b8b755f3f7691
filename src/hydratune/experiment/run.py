"""Jobs from their configuration to their results: prepare, train, finish. A single run is a list of one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hydratune.config.job import Job
from hydratune.core.spec_json import spec_as_json
from hydratune.core.types import LoadReport
from hydratune.distributed import signals
from hydratune.distributed.process_group import launched
from hydratune.distributed.runtime import Numerics, Runtime
from hydratune.engine.loop import advance
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches
from hydratune.experiment import report
from hydratune.experiment.finish import Result, complete, finish, paused
from hydratune.experiment.going_on import refuse_changes
from hydratune.experiment.init_from import Origin, find_origin
from hydratune.experiment.job_graph import JobGraph, Node
from hydratune.experiment.job_group import JobGroup, Meters, decided, gather, measured
from hydratune.experiment.prepare import PreparedJob, hold_once, init_rules, load_origin
from hydratune.experiment.pretraining import pretrained_run
from hydratune.freeze.patience import sentences
from hydratune.models.network import Network
from hydratune.record.run import Run
from hydratune.record.screen import Screen

Outcome = Result | Exception
RunJobs = Callable[[Sequence[Job], Screen, Callable[[Job], Screen]], Iterator[tuple[Job, Outcome]]]


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    return alone(job, screen, run_jobs)


def alone(job: Job, screen: Screen | None, run_jobs: RunJobs) -> Result:
    """A single run is a list of one."""
    screen = screen or Screen(quiet=launched().get("rank", 0) > 0)
    ((_, outcome),) = run_jobs([job], screen, lambda _: screen)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_jobs(jobs: Sequence[Job], screen: Screen, screen_for: Callable[[Job], Screen]) -> Iterator[tuple[Job, Outcome]]:
    """Jobs of one model, origin, data and seed, side by side; yields each with what became of it as that is known.

    screen_for: where each job's own tables go. What one job computes does not depend on the others; what fails in one
    does not touch them, what fails in all (their data, their model) is raised.
    """
    first = jobs[0]
    group, network, ready, failed = gather(jobs)
    yield from failed
    if not ready:
        return
    # All that can fail in these jobs has been tried; only now the pretraining that they may ask for.
    origin = _origin(group, ready, screen)
    fresh = [p for p in ready if not p.resumes]
    base = network.state_dict() if len(jobs) > 1 else next((p.base for p in fresh), {})
    loaded = None
    if fresh:
        loaded = load_origin(base, network.own_of_head(), origin, group.answers, init_rules(first.config))
    for prepared in fresh if len(jobs) > 1 else ():
        Network.copy(base, prepared.base)
    ready = [replace(prepared, base={}) for prepared in ready]  # what is loaded into no more is held by nobody else
    del fresh, base
    # Those that go on from the same step, in the same numbers, share a loop.
    rounds: dict[tuple[int, Numerics], list[PreparedJob]] = {}
    hows: dict[Numerics, str] = {}
    for prepared in ready:
        numerics, how = group.numerics(prepared, network if len(jobs) > 1 else prepared.network)
        hows.setdefault(numerics, how)
        rounds.setdefault((prepared.first_step, numerics), []).append(prepared)
    with ExitStack() as kept:
        if origin.held is not None:
            kept.callback(os.close, origin.held)
        for (_, numerics), together in sorted(rounds.items(), key=lambda r: r[0][0]):
            start, own = Start(origin, loaded, hows[numerics]), group.at(numerics)
            chosen, failed = (together, []) if first.config.dry_run else decided(own, together)
            yield from failed
            if len(chosen) > 1:
                hold_once(chosen)
            if chosen:
                yield from Round(own, chosen, start, screen, screen_for).run()


def pretrain(job: Job, screen: Screen) -> None:
    """Make the pretraining that the job asks for, unless it is there; nothing where its model brings its weights."""
    group, *_ = gather([job])
    _origin(group, [], screen, always=True)


def _origin(group: JobGroup, ready: Sequence[PreparedJob], screen: Screen, always: bool = False) -> Origin:
    """What those start from that do not go on with a run of their own."""
    if group.first.config.dry_run:
        return Origin("nothing: a dry run loads nothing")
    if not always and all(p.resumes for p in ready):
        return Origin("the run itself")
    return find_origin(group.first, group.body, group.spec, pretrained_by(group.first, screen))


def pretrained_by(job: Job, screen: Screen) -> Callable[[], Path]:
    """What names the directory of the pretraining that the job asks for, which is made where it is not there."""
    graph: JobGraph[Path] = JobGraph(
        lambda node: pretrained_run(node.payload, screen, lambda job: run_job(job, screen).directory)
    )
    pretraining = Node("pretrain", job.config.pretraining_key() or "", job)
    return lambda: graph.have(pretraining)


@dataclass(frozen=True)
class Start:
    """Where jobs start from, what was loaded of it, and how precision and layout were chosen."""

    origin: Origin
    loaded: LoadReport | None
    how: str


@dataclass(frozen=True)
class Round:
    """Jobs that go on from the same step, in the same numbers, side by side."""

    group: JobGroup
    ready: Sequence[PreparedJob]
    start: Start
    screen: Screen
    screen_for: Callable[[Job], Screen]

    def run(self) -> Iterator[tuple[Job, Outcome]]:
        """Train them from the step that they share."""
        group, runtime = self.group, self.group.runtime
        runtime.wait_for_all()  # what the directory holds has been read, before anything is written there
        streams = group.streams()
        _check_shares(runtime, streams)
        meters: Meters = {}
        trials: dict[Trial, tuple[PreparedJob, Run]] = {}
        planned: list[Caches] = []
        # What this one never changes no other one changes below its own fork
        carrier = max(self.ready, key=lambda p: p.fork)
        with ExitStack() as runs:
            for prepared in self.ready:
                try:
                    begun = self._begin(prepared, carrier, streams, meters, runs)
                except Exception as error:
                    yield prepared.job, error
                    continue
                if isinstance(begun, Result):
                    yield prepared.job, begun
                    continue
                trial, caches = begun
                trials[trial] = prepared, trial.run
                planned += [caches] if caches is not None else []
            if not trials:
                return
            yield from self._train(trials, streams, Caches.joined(planned))

    def _train(
        self, trials: dict[Trial, tuple[PreparedJob, Run]], streams: Streams, caches: Caches | None
    ) -> Iterator[tuple[Job, Outcome]]:
        first_step = self.ready[0].first_step
        cadence = next(iter(trials)).settings.cadence(self.group.steps_per_epoch, max(t.num_steps for t in trials))
        until = {t: prepared.halts(cadence.eval_every) for t, (prepared, _) in trials.items()}
        label = self.group.first.config.stage
        with self.screen.progress(label, first_step, max(until.values())) as line, signals.held():
            for trial in advance(list(trials), streams, cadence, line, first_step, caches, until):
                prepared, run = trials[trial]
                with signals.held(False):
                    outcome = self._outcome(prepared, trial, run, streams, caches)
                yield prepared.job, outcome

    def _begin(
        self, prepared: PreparedJob, carrier: PreparedJob, streams: Streams, meters: Meters, runs: ExitStack
    ) -> Result | tuple[Trial, Caches | None]:
        """The job's trial and what it caches, its run having begun; or its result, where nothing is to be trained."""
        group, job, runtime = self.group, prepared.job, self.group.runtime
        screen = self.screen_for(job)
        prepared.network.to(*_place(runtime))
        provenance = self._provenance(prepared)
        refuse_changes(prepared, provenance)
        if prepared.complete:
            prepared.network.to(runtime.torch_device)
            return complete(job, prepared.known, prepared.network, group, screen)
        caches, costs = measured(prepared, group, streams.train, provenance, meters)
        if job.config.dry_run:
            return self._dry_run(prepared, costs, screen)
        if prepared is not carrier:
            prepared = prepared.above(carrier.network)
        if runtime.shares and (tied := prepared.network.tied()):
            raise ValueError(f"runtime.strategy=fsdp: {tied[0]} belongs to several groups; replicate can")
        runtime.sharded([g.module for g in prepared.network.groups])
        record = prepared.record(self.start.origin, provenance, runtime, self.start.how).changed(
            **group.selection(job),
            spec=spec_as_json(group.spec),
            trained_with=[p.job.directory.name for p in self.ready if p.job is not job],
        )
        run: Run | None = None
        try:
            with signals.held():  # else run.json says that it runs, and nobody is there to say that it ended
                run = runs.enter_context(Run(job.directory, record, prepared.first_step, runtime.rank > 0))
            trial = Trial(
                prepared.network, prepared.plan(group.dataset.task), group.dataset.task, group.spec, runtime, run
            )
            if prepared.snapshot is not None:
                trial.restore(prepared.snapshot)
            told = screen.quieter(prepared.begins_generation and prepared.first_step > 0)
            if told is not screen:
                screen.line(f"train: {group.dataset.split_summary(group.train_split)}")
            report.show_start(told, run, job, group, streams.train, prepared.first_step, trial.num_steps)
            if not prepared.resumes:
                report.show_load(screen, run, self.start.loaded, prepared.frozen_at_random(self.start.loaded))
            report.show_phases(
                told, run, prepared.network, prepared.phases, costs, runtime, self.start.how, prepared.gradient_norms
            )
            if trial.settings.recompute:
                report.show_recomputed(screen, run, prepared.network.groups, prepared.phases)
            for sentence in sentences(trial.planned, trial.state.history, trial.plan.monitor.metric):
                run.add("freeze", sentence, prepared.first_step)
            if prepared.snapshot is None:
                run.show(group.dataset.show_batch(next(streams.train.batches(0, 1))), 0)
            if prepared.begins_generation:
                run.show(group.dataset.news(), prepared.first_step)
        except Exception as error:
            if run is not None:  # what it has begun to tell says how it ended
                run.__exit__(type(error), error, error.__traceback__)
            raise
        return trial, caches

    def _provenance(self, prepared: PreparedJob) -> dict[str, object]:
        resumed = (prepared.known.provenance or {}).get("origin") if prepared.resumes else self.start.origin.hash
        return prepared.provenance(resumed, self.group.dataset.files(), self.group.runtime.precision)

    def _dry_run(self, prepared: PreparedJob, costs: Sequence[tuple[str, ...]], screen: Screen) -> Result:
        job, steps = prepared.job, prepared.phases[-1].last_step
        screen.line(f"dry run of {job.config.stage}  {report.label(job)}: {steps} steps, nothing is trained or written")
        runtime = self.group.runtime
        report.show_phases(screen, None, prepared.network, prepared.phases, costs, runtime, self.start.how)
        if prepared.training.settings.recompute:
            report.show_recomputed(screen, None, prepared.network.groups, prepared.phases)
        return Result(job.directory, math.nan, prepared.known)

    def _outcome(
        self, prepared: PreparedJob, trial: Trial, run: Run, streams: Streams, caches: Caches | None
    ) -> Outcome:
        job = prepared.job
        try:
            with run:
                if trial.failed is not None:
                    raise trial.failed
                last = trial.state.history[-1][0] if trial.state.history else 0
                if last < trial.num_steps and trial.state.stopped is None:
                    return paused(job, run, trial)
                return finish(job, trial, self.group, streams.val, caches, self.screen_for(job))
        except Exception as error:
            return error


def _place(runtime: Runtime) -> tuple[torch.device, torch.memory_format]:
    """Where a network lies before it is trained; one that is shared out goes to its device share by share."""
    if runtime.shares:
        return torch.device("cpu"), torch.contiguous_format
    return runtime.torch_device, runtime.chosen.memory_format


def _check_shares(runtime: Runtime, streams: Streams) -> None:
    size = streams.train.batch_size
    if runtime.shares and size % runtime.world:
        raise ValueError(f"batch_size={size}: with runtime.strategy=fsdp a multiple of the {runtime.world} processes")
