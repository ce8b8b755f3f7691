"""stage=selfplay: a generation of games with the weights so far, steps on the newest generations, and so on.

All of it is one run: the steps of generation g are [(g - 1) * steps, g * steps), and the optimizer goes on through all
of them. A generation is f(weights, seed, its number), and the weights follow from the generations before, so that a run
that was killed anywhere goes on as if it had not been.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hydratune.config.fingerprint import content, differences
from hydratune.config.job import Job
from hydratune.distributed.process_group import launched
from hydratune.experiment import run
from hydratune.experiment.components import strategy_of
from hydratune.experiment.generation import made
from hydratune.experiment.going_on import another_configuration
from hydratune.experiment.init_from import find_origin
from hydratune.experiment.job_group import answers_of
from hydratune.experiment.player import Player, play_precision, player_of
from hydratune.experiment.prepare import init_rules, load_origin
from hydratune.experiment.run import Outcome, Result
from hydratune.freeze.lora import merged
from hydratune.record import checkpoint
from hydratune.record.run import write_json
from hydratune.record.screen import Screen

MADE = "generations.json"  # in a run directory: those that it has learned from, the newest last


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    return run.alone(job, screen, run_jobs) if job.config.selfplay else run.run_job(job, screen)


def run_jobs(jobs: Sequence[Job], screen: Screen, screen_for: Callable[[Job], Screen]) -> Iterator[tuple[Job, Outcome]]:
    """As `run.run_jobs`. Jobs of stage=selfplay share their first generation, and learn from it side by side."""
    if not jobs[0].config.selfplay:
        yield from run.run_jobs(jobs, screen, screen_for)
        return
    if jobs[0].config.dry_run:
        raise ValueError(
            "dry_run=true: what stage=selfplay trains on is played first; steps= and generations= say how long"
        )
    if launched():
        raise ValueError(
            "torchrun: stage=selfplay starts its own processes to play, and trains in one; start it without"
        )
    able: list[Job] = []
    first: Path | None = None  # the same one for all that have none yet
    for job in jobs:
        try:
            history = History.of(job)
        except ValueError as error:
            yield job, error
            continue
        if not history.generations:
            first = first or _first_generation(job, history, screen)
            job.directory.mkdir(parents=True, exist_ok=True)
            history.with_one_more(first).write(job)
        able.append(job)
    # Where a run lies that nobody asked to go on with, that is refused as in every stage.
    begin = [job for job in able if Progress.of(job).generation == 1 or job.config.resume is None]
    ended = set()
    for job, outcome in _trained(begin, 1, screen, screen_for):
        if not _goes_on(job, 1, outcome):
            ended.add(job)
            yield job, outcome
    for job in able:
        if job not in ended:
            yield job, _onward(job, screen_for(job))


def learning(jobs: Sequence[Job], screen: Screen) -> list[Job]:
    """Jobs of one group with the generations that they learn from; the first is played where there is none."""
    if not jobs[0].config.selfplay:
        return list(jobs)
    histories = [History.of(job) for job in jobs]
    lacking = next(
        ((job, history) for job, history in zip(jobs, histories, strict=True) if not history.generations), None
    )
    first = [] if lacking is None else [str(_first_generation(*lacking, screen))]
    return [_with(job, history.generations or first) for job, history in zip(jobs, histories, strict=True)]


@dataclass(frozen=True)
class Progress:
    """How far a run is. generation: that which its next step belongs to, from 1."""

    step: int
    generation: int

    @staticmethod
    def of(job: Job) -> Progress:
        newest, _ = checkpoint.newest_valid(job.directory / "checkpoints")
        step = 0 if newest is None else int(newest.name.removeprefix("step-"))
        return Progress(step, min(step // (job.config.steps or 1) + 1, job.config.generations))


def _target(job: Job) -> float:
    """The share of its steps that it goes to: a sweep may halt it."""
    return 1.0 if job.halt is None else job.halt


def _goes_on(job: Job, generation: int, outcome: Outcome) -> bool:
    """Whether another generation follows: it did not fail, did not stop early, and was not to halt here."""
    paused = isinstance(outcome, Result) and outcome.record.status == "paused"
    return paused and _target(job) > generation / job.config.generations


def _onward(job: Job, screen: Screen) -> Outcome:
    """The generations after the first."""
    try:
        while True:
            at, history = Progress.of(job), History.of(job)
            if len(history.generations) < at.generation:
                history.with_one_more(_next_generation(job, history, at, screen)).write(job)
            ((_, outcome),) = _trained([job.with_config(resume="auto")], at.generation, screen, lambda _: screen)
            if not _goes_on(job, at.generation, outcome):
                return outcome
    except Exception as error:
        return error


def _trained(
    jobs: Sequence[Job], generation: int, screen: Screen, screen_for: Callable[[Job], Screen]
) -> Iterator[tuple[Job, Outcome]]:
    """The steps of this generation. What they start from is what they started from in the first one."""
    if not jobs:
        return
    by_directory = {job.directory: job for job in jobs}
    share = generation / jobs[0].config.generations
    own = [replace(_with(job, History.of(job).generations[:generation]), halt=_halt(job, share)) for job in jobs]
    for job, outcome in run.run_jobs(own, screen, lambda job: screen_for(by_directory[job.directory])):
        yield by_directory[job.directory], outcome


def _halt(job: Job, share: float) -> float | None:
    return job.halt if share >= 1 else min(share, _target(job))


def _with(job: Job, directories: Sequence[str]) -> Job:
    return job.with_config(dataset={**job.config.dataset, "directories": list(directories), "grows": True})


@dataclass(frozen=True)
class History:
    """What generations.json says. asked: what determines the games, but for how many generations there are; precision:
    in which they are played, wherever the run goes on.
    """

    asked: Mapping[str, Any]
    precision: str
    generations: Sequence[str] = ()

    @staticmethod
    def of(job: Job) -> History:
        """Raises ValueError where the run that lies there is another one, or has lost what it learned from.

        What a run leaves that died before its first checkpoint binds nobody: where it is another one, it is forgotten.
        """
        config = job.config
        asked = content(config, strategy_of(job), None, "", config.precision)
        asked |= {"generations": None, "init_from": config.init_from, "pretraining": config.pretraining_key()}
        asked = json.loads(json.dumps(asked, default=str))
        fresh = History(asked, str(play_precision(job)))
        path = job.directory / MADE
        if not path.is_file():
            return fresh
        known = History(**json.loads(path.read_text()))
        changed = differences(known.asked, asked)
        if changed and not checkpoint.steps(job.directory / "checkpoints"):
            return fresh
        if changed:
            raise another_configuration(job.directory, changed)
        return replace(known, generations=[known._found(job, Path(d)) for d in known.generations])

    def _found(self, job: Job, directory: Path) -> str:
        """Where it was, or where the job's own would be."""
        for path in (directory, _home(job) / directory.name):
            if path.is_dir():
                return str(path)
        raise ValueError(
            f"resume: {job.directory} has learned from {directory}, which is gone. init_from= trains on from it"
        )

    def with_one_more(self, generation: Path) -> History:
        return replace(self, generations=[*self.generations, str(generation.absolute())])

    def write(self, job: Job) -> None:
        write_json(job.directory / MADE, vars(self))


# ---- who plays


def _first_generation(job: Job, history: History, screen: Screen) -> Path:
    """With the weights that the run starts from."""
    player = player_of(job, history.precision)
    dataset, network = player.dataset, player.network
    origin = find_origin(job, player.body, dataset.spec(), run.pretrained_by(job, screen))
    try:
        answers = answers_of(dataset.task, dataset.spec())
        load_origin(network.state_dict(), network.own_of_head(), origin, answers, init_rules(job.config))
        return _played(player, 1, screen)
    finally:
        if origin.held is not None:
            os.close(origin.held)


def _next_generation(job: Job, history: History, at: Progress, screen: Screen) -> Path:
    """With the weights after the steps so far; averaged ones where there are any."""
    player = player_of(job, history.precision)
    snapshot = checkpoint.load(checkpoint.path_of(job.directory / "checkpoints", at.step))
    player.network.load(merged({**snapshot.model, **snapshot.ema}))
    return _played(player, at.generation, screen)


def _home(job: Job) -> Path:
    return Path(job.config.outputs) / "generations"


def _played(player: Player, number: int, screen: Screen) -> Path:
    player.runtime.start()
    workers = player.job.config.threads or torch.get_num_threads()
    return made(player, number, _home(player.job), screen, workers)
