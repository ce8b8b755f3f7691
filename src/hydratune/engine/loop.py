"""The training loop: one trunk and a list of trials over one stream of batches. A single run is a list of one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from hydratune.data.stream import Stream
from hydratune.engine.settings import Cadence
from hydratune.engine.trial import Trial
from hydratune.record import checkpoint
from hydratune.record.progress import LiveLine


def train(trials: Sequence[Trial], train_stream: Stream, val_stream: Stream, cadence: Cadence, line: LiveLine,
          first_step: int = 0) -> None:  # fmt: skip
    """Bring every trial from `first_step` to the end of its phases.

    The trials' groups below all their forks are the same objects: that trunk runs once per batch for all of them.
    """
    trials = [t for t in trials if first_step < t.num_steps and t.stopped is None]
    last_step = max((t.num_steps for t in trials), default=first_step)
    for trial in trials:
        trial.enter(trial.phase_at(first_step))
    step, logged, logged_at = first_step, first_step, time.perf_counter()
    fetched = time.perf_counter()
    for batch in train_stream.batches(first_step, last_step):
        # Nothing below `shared` belongs to any one trial, and no trial's backward pass reaches it.
        shared = min(trial.fork for trial in trials)
        features = batch.inputs
        if shared:
            network = trials[0].network
            with torch.no_grad(), trials[0].runtime.autocast():
                features = network.forward(features, 0, shared)
        waited = time.perf_counter() - fetched
        for trial in trials:
            trial.step(step, features, batch, shared)
            trial.seconds["data"] += waited
        step += 1

        seen: dict[str, str] = {}
        if step % cadence.log_every == 0 or step == last_step:
            now = time.perf_counter()
            samples = (step - logged) * train_stream.batch_size
            for trial in trials:
                seen = trial.log(step, samples, now - logged_at)
            line.show(step, {**seen, **_metric(trials[-1])})
            logged, logged_at = step, now
        for trial in trials:
            ends = step == trial.num_steps
            if step % cadence.eval_every == 0 or ends:
                trial.evaluate(step, val_stream)
            if ends or trial.stopped or step % cadence.save_every == 0 or trial.best.get("step") == step:
                save(trial, step)
        if step % cadence.eval_every == 0 or step == last_step:
            line.milestone(step, {**seen, **_metric(trials[-1])})
            logged, logged_at = step, time.perf_counter()
        for trial in trials:
            if step == trial.num_steps or trial.stopped:
                trial.leave()
        # The list only shrinks.
        trials = [t for t in trials if step < t.num_steps and t.stopped is None]
        if not trials:
            break
        fetched = time.perf_counter()


def save(trial: Trial, step: int) -> None:
    """A checkpoint of after `step` updates; the best and the last are kept."""
    directory = trial.run.checkpoints
    checkpoint.save(directory, step, trial.snapshot(step))
    checkpoint.prune(directory, keep={step, trial.best.get("step", step)})


def _metric(trial: Trial) -> dict[str, str]:
    name = trial.task.monitor
    return {f"val {name}": f"{trial.last[name]:.4f}"} if trial.last else {}
