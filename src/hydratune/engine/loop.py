"""The training loop: one trunk and a list of trials over one stream of batches. A single run is a list of one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from hydratune.core.types import Batch, Features
from hydratune.distributed import signals
from hydratune.engine.milestones import best_metric, evaluate_due, save, settle
from hydratune.engine.settings import Cadence
from hydratune.engine.stretch import Streams, Stretch, Trunks
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches
from hydratune.record.screen import LiveLine


def train(
    trials: Sequence[Trial], streams: Streams, cadence: Cadence, line: LiveLine, first_step: int = 0,
    caches: Caches | None = None,
) -> None:  # fmt: skip
    """Bring every trial from `first_step` to the end of its phases; the first one to fail ends it."""
    for trial in advance(trials, streams, cadence, line, first_step, caches):
        if trial.failed is not None:
            raise trial.failed


def advance(
    trials: Sequence[Trial], streams: Streams, cadence: Cadence, line: LiveLine, first_step: int = 0,
    caches: Caches | None = None, until: Mapping[Trial, int] | None = None,
) -> Iterator[Trial]:  # fmt: skip
    """Bring every trial to its last step, or to its step in `until`; yields each as it is done, stopped or failed.

    What lies below the groups that a trial has ever changed is the same for all: that trunk runs once per batch for all
    of them, or not at all where its outputs are cached. A failure takes one trial out and leaves the others alone.
    """
    settle(trials, first_step, streams, caches)
    ends = {t: (until or {}).get(t, t.num_steps) for t in trials}
    left = [t for t in trials if first_step < ends[t] and t.state.stopped is None]
    yield from (t for t in trials if t not in left)
    clock = _Clock(line, streams, first_step, max((ends[t] for t in left), default=first_step))
    step = first_step
    while left:
        for trial in left:
            with trial.alone():
                trial.prepare(step)
        yield from (t for t in left if t.failed is not None)
        trials = left = [t for t in left if t.failed is None]
        if not left:
            break
        stretch = _stretch(trials, step, ends, streams, caches)
        for batch, features, waited in _fetched(stretch, step):
            stretch.update(step, batch, features, waited)
            step += 1
            left = _milestones(stretch, step, ends, cadence, clock, streams)
            if len(left) < len(trials) or stretch.over(step):  # the list only shrinks
                break
        for trial in trials:
            if trial not in left:
                if trial.failed is None:
                    with trial.alone():
                        trial.leave()
                yield trial


def _stretch(
    trials: Sequence[Trial], step: int, ends: Mapping[Trial, int], streams: Streams, caches: Caches | None
) -> Stretch:
    """From this step on, as long as no trial changes what it trains."""
    last = min(min(trial.phase_at(step).last_step, ends[trial]) for trial in trials)
    try:
        trunks = Trunks.of(trials, step, streams, caches)
    except signals.Stopped:
        for trial in trials if step else ():
            save(trial, step)
        raise
    return Stretch.of(trials, step, last, trunks)


def _fetched(stretch: Stretch, step: int) -> Iterator[tuple[Batch, Mapping[int, Features], float]]:
    """The batches of a stretch with their trunk's features, and the seconds that each was waited for."""
    began = time.perf_counter()
    for batch, features in stretch.trunks.train.batches(step, stretch.last):
        yield batch, features, time.perf_counter() - began
        began = time.perf_counter()


def _milestones(
    stretch: Stretch, step: int, ends: Mapping[Trial, int], cadence: Cadence, clock: _Clock, streams: Streams
) -> list[Trial]:
    """What is due after `step` updates: log, evaluate, save. Returns the trials that go on; raises Stopped."""
    trials = stretch.trials
    logs, due = step % cadence.log_every == 0 or step == clock.end, step % cadence.eval_every == 0
    asked = trials[0].runtime.agreed(signals.asked())
    saves = step % cadence.save_every == 0 or asked
    if logs or due or saves or step == stretch.last or any(t.failed for t in trials):
        stretch.catch_up(step)
    running = [t for t in trials if t.failed is None]
    if logs:
        clock.log(running, step)
    to_see = [t for t in running if due or step == ends[t]]
    asked = evaluate_due(to_see, step, stretch.led, stretch.trunks, streams.evals) or asked
    for trial in running:
        done = step == ends[trial] or trial.state.stopped
        if done or saves or asked or step in trial.bests(step):
            with trial.alone():
                save(trial, step)
    if asked:
        raise signals.Stopped(asked)
    if due or step == clock.end:
        clock.milestone(running, step)
    return [t for t in running if step < ends[t] and t.state.stopped is None and t.failed is None]


class _Clock:
    """The live line, and the speed between two logs. end: the last step of all."""

    def __init__(self, line: LiveLine, streams: Streams, step: int, end: int) -> None:
        self.line, self.stream, self.end = line, streams.train, end
        self._seen: dict[str, str] = {}
        self._logged, self._since = step, time.perf_counter()

    def log(self, running: Sequence[Trial], step: int) -> None:
        now = time.perf_counter()
        units = (step - self._logged) * self.stream.batch_size * self.stream.units_per_sample
        speed = units / max(now - self._since, 1e-9)
        shown = [trial.log(step, speed, self.stream.unit) for trial in running]
        self._seen = shown[0] if shown else {}
        self.line.show(step, {**self._seen, **best_metric(running)})
        self._logged, self._since = step, now

    def milestone(self, running: Sequence[Trial], step: int) -> None:
        self.line.milestone(step, {**self._seen, **best_metric(running)})
        self._seen = {}
        self._logged, self._since = step, time.perf_counter()
