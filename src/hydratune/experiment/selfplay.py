"""stage=selfplay: a generation of games with the weights so far, steps on the newest generations, and so on.

All of it is one run: the steps of generation g are [(g - 1) * steps, g * steps), and the optimizer goes on through all
of them. A generation is f(weights, seed, its number), and the weights follow from the generations before, so that a run
that was killed anywhere goes on as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hydratune.config.job import Job
from hydratune.distributed.process_group import launched
from hydratune.experiment import run
from hydratune.experiment.generation import made
from hydratune.experiment.init_from import find_origin
from hydratune.experiment.job_group import answers_of
from hydratune.experiment.player import Player, player_of
from hydratune.experiment.prepare import first_network, init_rules, load_origin
from hydratune.experiment.run import Outcome, Result
from hydratune.freeze.lora import merged
from hydratune.record import checkpoint
from hydratune.record.run import write_json
from hydratune.record.screen import Screen

MADE = "generations.json"  # in a run directory: those that it has learned from, the newest last


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    if not job.config.selfplay:
        return run.run_job(job, screen)
    screen = screen or Screen(quiet=launched().get("rank", 0) > 0)
    ((_, outcome),) = run_jobs([job], screen, lambda _: screen)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_jobs(jobs: Sequence[Job], screen: Screen, screen_for: Callable[[Job], Screen]) -> Iterator[tuple[Job, Outcome]]:
    """As `run.run_jobs`. Jobs of stage=selfplay share their first generation, and learn from it side by side."""
    if not jobs[0].config.selfplay:
        yield from run.run_jobs(jobs, screen, screen_for)
        return
    if jobs[0].config.dry_run or launched():
        why = "dry_run=true" if jobs[0].config.dry_run else "torchrun"
        raise ValueError(
            f"{why}: stage=selfplay plays before it trains, by itself in several processes; without it runs"
        )
    first = [job for job in jobs if not made_for(job)]
    if first:
        remembered = [str(_first_generation(first[0], screen))]
        for job in first:
            job.directory.mkdir(parents=True, exist_ok=True)
            write_json(job.directory / MADE, remembered)
    # Where a run lies that nobody asked to go on with, that is refused as in every stage.
    begin = [job for job in jobs if Progress.of(job).generation == 1 or job.config.resume is None]
    ended = set()
    for job, outcome in _trained(begin, 1, screen, screen_for):
        if isinstance(outcome, Exception) or _target(job) <= 1 / job.config.generations:
            ended.add(job)
            yield job, outcome
    for job in jobs:
        if job not in ended:
            yield job, _onward(job, screen_for(job))


def learning(job: Job, screen: Screen) -> Job:
    """The job with the generations that it learns from; the first is played where there is none."""
    if not job.config.selfplay:
        return job
    return _with(job, made_for(job) or [str(_first_generation(job, screen))])


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


def _onward(job: Job, screen: Screen) -> Outcome:
    """The generations after the first."""
    try:
        while True:
            at = Progress.of(job)
            known = made_for(job)
            if len(known) < at.generation:
                known = [*known, str(_next_generation(job, at, screen))]
                write_json(job.directory / MADE, known)
            ((_, outcome),) = _trained([job.with_config(resume="auto")], at.generation, screen, lambda _: screen)
            if isinstance(outcome, Exception) or _target(job) <= at.generation / job.config.generations:
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
    own = [replace(_with(job, made_for(job)[:generation]), halt=_halt(job, share)) for job in jobs]
    for job, outcome in run.run_jobs(own, screen, lambda job: screen_for(by_directory[job.directory])):
        yield by_directory[job.directory], outcome


def _halt(job: Job, share: float) -> float | None:
    return job.halt if share >= 1 else min(share, _target(job))


def _with(job: Job, directories: Sequence[str]) -> Job:
    return job.with_config(dataset={**job.config.dataset, "directories": list(directories)})


def made_for(job: Job) -> list[str]:
    """The generations that a run directory names. Raises ValueError where one is gone: the run cannot be the same."""
    path = job.directory / MADE
    found: list[str] = json.loads(path.read_text()) if path.is_file() else []
    lost = next((directory for directory in found if not Path(directory).is_dir()), None)
    if lost is not None:
        raise ValueError(
            f"resume: {job.directory} has learned from {lost}, which is gone. init_from= trains on from it"
        )
    return found


# ---- who plays


def _first_generation(job: Job, screen: Screen) -> Path:
    """With the weights that the run starts from."""
    player = player_of(job)
    player.runtime.start()
    dataset, network = player.dataset, player.network
    body, _ = first_network(job, dataset, dataset.spec())
    pretrained = run.pretrained_by(job, screen)
    origin = find_origin(job, body, dataset.spec(), pretrained)
    answers = answers_of(dataset.task, dataset.spec())
    load_origin(network.state_dict(), network.own_of_head(), origin, answers, init_rules(job.config))
    return _played(player, 1, screen)


def _next_generation(job: Job, at: Progress, screen: Screen) -> Path:
    """With the weights after the steps so far; averaged ones where there are any."""
    player = player_of(job)
    snapshot = checkpoint.load(checkpoint.path_of(job.directory / "checkpoints", at.step))
    player.network.load(merged({**snapshot.model, **snapshot.ema}))
    return _played(player, at.generation, screen)


def _played(player: Player, number: int, screen: Screen) -> Path:
    job = player.job
    workers = job.config.threads or torch.get_num_threads()
    return made(player, number, Path(job.config.outputs) / "generations", screen, workers)
