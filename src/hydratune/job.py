"""Jobs from their configuration to their results: assemble, train, select, test. A single run is a list of one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from hydratune import construct, signals, story
from hydratune.assemble import Job
from hydratune.company import launched
from hydratune.data.dataset import Dataset
from hydratune.data.stream import Stream
from hydratune.engine.loop import advance
from hydratune.engine.probe import choose_precision
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches
from hydratune.freeze.cost import CostMeter
from hydratune.markup import fenced
from hydratune.member import Member, build_member, first_network, init_rules, load_origin, measured
from hydratune.models.network import Network
from hydratune.origin import Origin, find_origin, inherited_tokenizer
from hydratune.outcome import Result, complete, finish, paused
from hydratune.record.progress import Screen
from hydratune.record.run import Run
from hydratune.runtime import Numerics, Precision, Runtime
from hydratune.types import Body, LoadReport, Spec

Outcome = Result | Exception


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    screen = screen or Screen(quiet=launched().get("rank", 0) > 0)
    ((_, outcome),) = run_jobs([job], screen, lambda _: screen)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_jobs(jobs: Sequence[Job], screen: Screen, told: Callable[[Job], Screen]) -> Iterator[tuple[Job, Outcome]]:
    """Jobs of one model, origin, data and seed, side by side; yields each with what became of it as that is known.

    told: where each job's own tables go. What one job computes does not depend on the others; what fails in one does
    not touch them, what fails in all (their data, their model) is raised.
    """
    first = jobs[0]
    room, network, members, failed = gather(jobs)
    yield from failed
    if not members:
        return
    # All that can fail in these jobs has been tried; only now the pretraining that they may ask for.
    origin = room.origin(members, screen)
    fresh = [m for m in members if not m.resumes]
    base = network.state_dict() if len(jobs) > 1 else next((m.base for m in fresh), {})
    loaded = None
    if fresh:
        loaded = load_origin(base, network.own_of_head(), origin, room.spec, init_rules(first.config))
    for member in fresh if len(jobs) > 1 else ():
        Network.copy(base, member.base)
    # Those that go on from the same step, in the same numbers, share a loop.
    rounds: dict[tuple[int, Numerics], list[Member]] = {}
    hows: dict[Numerics, str] = {}
    for member in members:
        numerics, how = room.numerics(member, network if len(jobs) > 1 else member.network)
        hows.setdefault(numerics, how)
        rounds.setdefault((member.first_step, numerics), []).append(member)
    with ExitStack() as kept:
        if origin.held is not None:
            kept.callback(os.close, origin.held)
        for (_, numerics), together in sorted(rounds.items(), key=lambda r: r[0][0]):
            yield from room.at(numerics).run(together, origin, loaded, hows[numerics], screen, told)


def pretrained(job: Job, screen: Screen) -> None:
    """Make the pretraining that the job asks for, unless it is there; nothing where its model brings its weights."""
    room, *_ = gather([job])
    room.origin([], screen, always=True)


def gather(jobs: Sequence[Job]) -> tuple[Room, Network, list[Member], list[tuple[Job, Exception]]]:
    """(what they have in common, their network before anything is loaded, those that can run, those that cannot)"""
    room, network = in_common(jobs)
    members: list[Member] = []
    failed: list[tuple[Job, Exception]] = []
    for job in jobs:
        try:
            members.append(build_member(job, network if len(jobs) == 1 else network.fork(0), room.steps_per_epoch))
        except Exception as error:
            failed.append((job, error))
    return room, network, members, failed


def data_of(job: Job) -> Dataset:
    return construct.construct(job.config["dataset"], "dataset", job.trust, inherited=inherited_tokenizer(job))


def in_common(jobs: Sequence[Job]) -> tuple[Room, Network]:
    """What jobs have in common, and their network as no strategy has changed it yet."""
    first = jobs[0]
    runtime: Runtime = construct.construct(first.config["runtime"], "runtime", first.trust, **launched())
    runtime.start()
    dataset = data_of(first)
    spec = dataset.spec()
    body, network = first_network(first, dataset, spec)
    warnings = dataset.check(any(job.reads_test for job in jobs))
    return Room(first, runtime, dataset, spec, body, dataset.split("train"), dataset.split("val"), warnings), network


@dataclass(frozen=True)
class Room:
    """What jobs that run side by side have in common."""

    first: Job
    runtime: Runtime
    dataset: Dataset
    spec: Spec
    body: Body
    train_split: Any
    val_split: Any
    warnings: Sequence[str]  # what the data set says of itself

    @property
    def steps_per_epoch(self) -> int:
        samples = len(self.train_split)
        return max(samples // min(self.first.config["batch_size"], samples), 1)

    def at(self, numerics: Numerics) -> Room:
        return replace(self, runtime=self.runtime.computing(numerics))

    def stream(self, split: Any, training: bool = False) -> Stream:
        config, runtime = self.first.config, self.runtime
        return self.dataset.stream(
            split, self.body, config["batch_size"], runtime.torch_device, config["seed"], runtime.chosen.memory_format,
            runtime.rank, runtime.world, training,
        )  # fmt: skip

    def origin(self, members: Sequence[Member], screen: Screen, always: bool = False) -> Origin:
        """What those start from that do not go on with a run of their own."""
        if self.first.config["dry_run"]:
            return Origin("nothing: a dry run loads nothing")
        if not always and all(m.resumes for m in members):
            return Origin("the run itself")
        return find_origin(self.first, self.body, screen, lambda pretraining: run_job(pretraining, screen).directory)

    def numerics(self, member: Member, network: Network) -> tuple[Numerics, str]:
        return member.numerics(self.dataset.files(), self.runtime, lambda: self._precision(network))

    def _precision(self, network: Network) -> tuple[Precision, str]:
        if self.runtime.shares:
            return self.runtime.candidates()[0], "not probed: no process has the whole network"
        network.to(self.runtime.torch_device)
        model = json.dumps(self.first.config["model"], sort_keys=True)
        batch = next(self.stream(self.train_split).once())
        if self.runtime.rank:  # the first one tries and remembers: two would each find something else
            return Precision.parse(self.runtime.first_says("")), ""
        chosen, how = choose_precision(network, self.dataset.task, batch, self.runtime, model)
        self.runtime.first_says(str(chosen))
        return chosen, how

    def run(
        self, members: Sequence[Member], origin: Origin, loaded: LoadReport | None, how: str, screen: Screen,
        told: Callable[[Job], Screen],
    ) -> Iterator[tuple[Job, Outcome]]:  # fmt: skip
        """Train them side by side from the step that they share."""
        runtime, dataset = self.runtime, self.dataset
        runtime.wait_for_all()  # what the directory holds has been read, before anything is written there
        train_stream, val_stream = self.stream(self.train_split, training=True), self.stream(self.val_split)
        if runtime.shares and train_stream.batch_size % runtime.world:
            said = f"batch_size={train_stream.batch_size}: with runtime.strategy=fsdp"
            raise ValueError(f"{said} a multiple of the {runtime.world} processes")
        meters: dict[frozenset[str], CostMeter] = {}
        trials: dict[Trial, tuple[Member, Run]] = {}
        planned: list[Caches] = []
        carrier = max(members, key=lambda m: m.fork)  # what it never changes no other one changes below its own fork
        with ExitStack() as stack:
            for member in members:
                job = member.job
                run: Run | None = None
                beside = [m.job.directory.name for m in members if m is not member]
                try:
                    member.network.to(*self._place())
                    made_of = self._made_of(member, origin)
                    member.refuse_changes(made_of)
                    if member.known.get("status") == "complete" and member.snapshot is not None:
                        member.network.to(runtime.torch_device)
                        arguments = (member.network, self.body, dataset, self.spec, runtime, self.stream)
                        yield job, complete(job, member.known, *arguments, told(job))
                        continue
                    caches, costs = measured(member, dataset.task, runtime, train_stream, made_of, meters)
                    if job.config["dry_run"]:
                        yield job, self._dry_run(member, costs, how, told(job))
                        continue
                    if member is not carrier:
                        member = member.above(carrier.network)
                    if runtime.shares and (tied := member.network.tied()):
                        raise ValueError(f"runtime.strategy=fsdp: {tied[0]} belongs to several groups; replicate can")
                    runtime.sharded([g.module for g in member.network.groups])
                    told_of = {
                        **member.record(origin, made_of, runtime, how), "monitor": dataset.task.monitor,
                        "val_samples": len(self.val_split), "beside": beside,
                    }  # fmt: skip
                    with signals.held():  # else run.json says that it runs, and nobody is there to say that it ended
                        run = stack.enter_context(Run(job.directory, told_of, member.first_step, runtime.rank > 0))
                    trial = Trial(
                        member.network, member.phases, dataset.task, self.spec, member.recipe, member.schedule,
                        member.settings, runtime, run, job.config["seed"],
                    )  # fmt: skip
                    self._tell(member, trial, run, loaded, costs, how, told(job), train_stream)
                except Exception as error:
                    if run is not None:  # what it has begun to tell says how it ended
                        run.__exit__(type(error), error, error.__traceback__)
                    yield job, error
                    continue
                trials[trial] = member, run
                planned += [caches] if caches is not None else []
            if not trials:
                return
            first_step, cadence = members[0].first_step, next(iter(trials)).settings.cadence(self.steps_per_epoch)
            until = {t: member.halts(cadence.eval_every) for t, (member, _) in trials.items()}
            kept = Caches.joined(planned)
            label = self.first.config["stage"]
            with screen.progress(label, first_step, max(until.values())) as line, signals.held():
                for trial in advance(list(trials), train_stream, val_stream, cadence, line, first_step, kept, until):
                    member, run = trials[trial]
                    with signals.held(False):
                        outcome = self._outcome(member, trial, run, val_stream, kept, told(member.job))
                    yield member.job, outcome

    def _place(self) -> tuple[torch.device, torch.memory_format]:
        """Where a network lies before it is trained; one that is shared out goes to its device share by share."""
        if self.runtime.shares:
            return torch.device("cpu"), torch.contiguous_format
        return self.runtime.torch_device, self.runtime.chosen.memory_format

    def _made_of(self, member: Member, origin: Origin) -> dict[str, Any]:
        started = member.known["made_of"]["origin"] if member.resumes else origin.hash
        return member.made_of(started, self.dataset.files(), self.runtime.precision)

    def _tell(
        self, member: Member, trial: Trial, run: Run, loaded: LoadReport | None, costs: Sequence[tuple[str, ...]],
        how: str, screen: Screen, train_stream: Stream,
    ) -> None:  # fmt: skip
        job, snapshot = member.job, member.snapshot
        if snapshot is not None:
            trial.restore(snapshot)
            shown, step = story.shown_path(job.directory), member.first_step
            screen.line(f"resuming {shown} from step {step} of {trial.num_steps}")
        screen.line(f"{job.config['stage']}  {story.label(job)}  ->  {story.shown_path(job.directory)}")
        run.board.text("config", fenced(job.text, "yaml"))
        if not run.silent and (said := self.dataset.keep(run.directory / "tokenizer")):
            screen.line(said)
        for part, split in (("train", train_stream.split), ("val", self.val_split)):
            if said := self.dataset.remark(split):
                screen.line(f"{part}: {said}")
        for warning in self.warnings:
            screen.line(f"warning: {warning}")
        story.show_load(screen, run, None if member.resumes else loaded)
        story.show_phases(screen, run, member.network, member.phases, costs, self.runtime, how)
        if snapshot is None:
            run.show(self.dataset.show_batch(next(train_stream.batches(0, 1))), 0)

    def _dry_run(self, member: Member, costs: Sequence[tuple[str, ...]], how: str, screen: Screen) -> Result:
        job, steps = member.job, member.phases[-1].last_step
        screen.line(
            f"dry run of {job.config['stage']}  {story.label(job)}: {steps} steps, nothing is trained or written"
        )
        story.show_phases(screen, None, member.network, member.phases, costs, self.runtime, how)
        return Result(job.directory, math.nan, {})

    def _outcome(
        self, member: Member, trial: Trial, run: Run, val_stream: Stream, caches: Caches | None, screen: Screen
    ) -> Outcome:
        try:
            with run:
                if trial.failed is not None:
                    raise trial.failed
                last = trial.history[-1][0] if trial.history else 0
                if last < trial.num_steps and trial.stopped is None:
                    return paused(member.job, run, trial)
                return finish(member.job, run, trial, self.body, self.dataset, self.stream, val_stream, caches, screen)
        except Exception as error:
            return error
