"""A stretch of steps in which no trial changes what it trains: who computes what, below its cut and above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydratune.core.types import Batch, Features
from hydratune.data.stream import Stream
from hydratune.engine.dedupe import followers, take
from hydratune.engine.stacked_heads import HeadStack, stacked
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, Trunk, cached


@dataclass(frozen=True)
class Streams:
    """train; val, which selects; evals: further named sets, read at the same steps and reported beside it."""

    train: Stream
    val: Stream
    evals: Mapping[str, Stream]


@dataclass(frozen=True)
class Trunks:
    """Where each trial takes on in training and in validation, and the trunks for that, cached where planned."""

    cuts: Mapping[Trial, int]
    train: Trunk
    val_cuts: Mapping[Trial, int]
    val: Trunk

    @staticmethod
    def of(trials: Sequence[Trial], step: int, streams: Streams, caches: Caches | None) -> Trunks:
        # The one that has changed least still has all that is shared; a trial alone takes its own groups, changed
        # or not.
        carrier = max(trials, key=lambda t: t.untouched(step))
        cuts = {t: t.untouched(step) if len(trials) > 1 else t.phase_at(step).cut for t in trials}
        # Averaged weights differ from a trunk's that has trained before.
        val_cuts = {t: min(c, t.untouched(step)) if t.settings.ema is not None else c for t, c in cuts.items()}
        planned = {cuts[t] for t in trials if cuts[t] and caches is not None and t.planned_at(step) in caches.phases}
        trunks = []
        for where, stream in ((cuts, streams.train), (val_cuts, streams.val)):
            trunk = Trunk(carrier.network, sorted(set(where.values())), carrier.runtime, stream)
            if caches is not None:
                data = caches.train if stream is streams.train else caches.val
                trunk = cached(trunk, planned.intersection(trunk.cuts), caches.store, data)
            trunks.append(trunk)
        return Trunks(cuts, trunks[0], val_cuts, trunks[1])


@dataclass(frozen=True)
class Stretch:
    """Steps up to `last` (exclusive). led: follower -> the leader whose state it takes over when somebody looks."""

    trials: Sequence[Trial]
    last: int
    trunks: Trunks
    led: Mapping[Trial, Trial]
    stack: HeadStack | None
    singly: Sequence[Trial]

    @staticmethod
    def of(trials: Sequence[Trial], step: int, last: int, trunks: Trunks) -> Stretch:
        # Those that would do just what another one does take over its state.
        led = followers(trials, step, last)
        leaders = [t for t in trials if t not in led]
        stack = stacked(leaders, trunks.cuts, step)
        singly = [t for t in leaders if stack is None or t not in stack.trials]
        return Stretch(trials, last, trunks, led, stack, singly)

    def update(self, step: int, batch: Batch, features: Mapping[int, Features], waited: float) -> None:
        """One step of every trial. waited: seconds for the batch."""
        cuts = self.trunks.cuts
        for trial in self.singly:
            with trial.alone():
                trial.step(step, features[cuts[trial]], batch, cuts[trial])
        if self.stack is not None:
            self.stack.step(step, features[cuts[self.stack.trials[0]]], batch)
        for trial in self.trials:
            trial.meters.data += waited

    def over(self, step: int) -> bool:
        """Whether a trial's phase has ended after `step` updates, as planned or by its patience."""
        return any(trial.phase_at(step - 1).last_step == step for trial in self.trials)

    def catch_up(self, step: int) -> None:
        """The followers are what their leaders are after `step` updates."""
        for trial, leader in self.led.items():
            take(trial, leader, step)
