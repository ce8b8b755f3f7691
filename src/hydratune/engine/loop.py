"""The training loop: one trunk and a list of trials over one stream of batches. A single run is a list of one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hydratune.data.stream import Stream
from hydratune.engine.settings import Cadence
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, Trunk, cached
from hydratune.record import checkpoint
from hydratune.record.progress import LiveLine


def train(trials: Sequence[Trial], train_stream: Stream, val_stream: Stream, cadence: Cadence, line: LiveLine,
          first_step: int = 0, caches: Caches | None = None) -> None:  # fmt: skip
    """Bring every trial from `first_step` to the end of its phases.

    The trials' groups below all their forks are the same objects: that trunk runs once per batch for all of them, or
    not at all where its outputs are cached.
    """
    trials = [t for t in trials if first_step < t.num_steps and t.stopped is None]
    end = max((t.num_steps for t in trials), default=first_step)
    step, logged, logged_at = first_step, first_step, time.perf_counter()
    while trials:
        for trial in trials:
            trial.prepare(step)
        # Within a stretch no trial changes what it trains.
        stretch = min(trial.phase_at(step).last_step for trial in trials)
        # Nothing below `cut` belongs to any one trial, and no trial's backward pass reaches it.
        cut = trials[0].phase_at(step).cut if len(trials) == 1 else min(trial.fork for trial in trials)
        train_trunk, val_trunk = _trunks(trials, cut, step, train_stream, val_stream, caches)
        fetched = time.perf_counter()
        for batch, features in train_trunk.batches(step, stretch):
            waited = time.perf_counter() - fetched
            for trial in trials:
                trial.step(step, features, batch, cut)
                trial.seconds["data"] += waited
            step += 1

            seen: dict[str, str] = {}
            if step % cadence.log_every == 0 or step == end:
                now = time.perf_counter()
                samples = (step - logged) * train_stream.batch_size
                for trial in trials:
                    seen = trial.log(step, samples, now - logged_at)
                line.show(step, {**seen, **_metric(trials[-1])})
                logged, logged_at = step, now
            for trial in trials:
                ends = step == trial.num_steps
                if step % cadence.eval_every == 0 or ends:
                    trial.evaluate(step, val_trunk)
                if ends or trial.stopped or step % cadence.save_every == 0 or trial.best.get("step") == step:
                    save(trial, step)
            if step % cadence.eval_every == 0 or step == end:
                line.milestone(step, {**seen, **_metric(trials[-1])})
                logged, logged_at = step, time.perf_counter()
            # The list only shrinks.
            left = [t for t in trials if step < t.num_steps and t.stopped is None]
            if len(left) < len(trials):
                break
            fetched = time.perf_counter()
        for trial in trials:
            if trial not in left:
                trial.leave()
        trials = left


def _trunks(
    trials: Sequence[Trial], cut: int, step: int, train_stream: Stream, val_stream: Stream, caches: Caches | None
) -> tuple[Trunk, Trunk]:
    """For training and for validation, cached where that was planned."""
    first = trials[0]
    train_trunk, val_trunk = (Trunk(first.network, cut, first.runtime, s) for s in (train_stream, val_stream))
    if cut and caches is not None and first.phase_at(step) in caches.phases:
        train_trunk = cached(train_trunk, caches.store, caches.train)
        val_trunk = cached(val_trunk, caches.store, caches.val)
    # Averaged weights differ from the trunk's where it has trained before; and trials of different lives share no more.
    untouched = min(p.cut for t in trials for p in t.phases if p.first_step <= step)
    averaged = any(trial.settings.ema is not None for trial in trials)
    if len(trials) > 1 or (averaged and untouched < cut):
        val_trunk = Trunk(first.network, 0, first.runtime, val_stream)
    return train_trunk, val_trunk


def save(trial: Trial, step: int) -> None:
    """A checkpoint of after `step` updates; the best and the last are kept."""
    directory = trial.run.checkpoints
    checkpoint.save(directory, step, trial.snapshot(step))
    checkpoint.prune(directory, keep={step, trial.best.get("step", step)})


def _metric(trial: Trial) -> dict[str, str]:
    name = trial.task.monitor
    return {f"val {name}": f"{trial.last[name]:.4f}"} if trial.last else {}
