"""The training loop: one trunk and a list of trials over one stream of batches. A single run is a list of one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from hydratune import signals
from hydratune.data.stream import Stream
from hydratune.engine.evaluate import evaluate_tails, look
from hydratune.engine.settings import Cadence
from hydratune.engine.stack import stacked
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, Trunk, cached
from hydratune.engine.twins import followers, take
from hydratune.record import checkpoint
from hydratune.record.progress import LiveLine


def train(trials: Sequence[Trial], train_stream: Stream, val_stream: Stream, cadence: Cadence, line: LiveLine,
          first_step: int = 0, caches: Caches | None = None) -> None:  # fmt: skip
    """Bring every trial from `first_step` to the end of its phases; the first one to fail ends it."""
    for trial in advance(trials, train_stream, val_stream, cadence, line, first_step, caches):
        if trial.failed is not None:
            raise trial.failed


def advance(
    trials: Sequence[Trial], train_stream: Stream, val_stream: Stream, cadence: Cadence, line: LiveLine,
    first_step: int = 0, caches: Caches | None = None, until: Mapping[Trial, int] | None = None,
) -> Iterator[Trial]:  # fmt: skip
    """Bring every trial to its last step, or to its step in `until`; yields each as it is done, stopped or failed.

    What lies below the groups that a trial has ever changed is the same for all: that trunk runs once per batch for all
    of them, or not at all where its outputs are cached. A failure takes one trial out and leaves the others alone.
    """
    _settle(trials, first_step, train_stream, val_stream, caches)
    ends = {t: (until or {}).get(t, t.num_steps) for t in trials}
    left = [t for t in trials if first_step < ends[t] and t.stopped is None]
    yield from (t for t in trials if t not in left)
    end = max((ends[t] for t in left), default=first_step)
    step, logged, logged_at = first_step, first_step, time.perf_counter()
    while left:
        for trial in left:
            with trial.alone():
                trial.prepare(step)
        yield from (t for t in left if t.failed is not None)
        trials = left = [t for t in left if t.failed is None]
        if not left:
            break
        # Within a stretch no trial changes what it trains.
        stretch = min(min(trial.phase_at(step).last_step, ends[trial]) for trial in trials)
        # Those that would do just what another one does take over its state when somebody looks.
        led = followers(trials, step, stretch)
        try:
            cuts, train_trunk, val_cuts, val_trunk = _trunks(trials, step, train_stream, val_stream, caches)
        except signals.Stopped:
            for trial in trials if step else ():
                save(trial, step)
            raise
        stack = stacked([t for t in trials if t not in led], cuts, step)
        singly = [t for t in trials if t not in led and (stack is None or t not in stack.trials)]
        fetched = time.perf_counter()
        for batch, features in train_trunk.batches(step, stretch):
            waited = time.perf_counter() - fetched
            for trial in singly:
                with trial.alone():
                    trial.step(step, features[cuts[trial]], batch, cuts[trial])
            if stack is not None:
                stack.step(step, features[cuts[stack.trials[0]]], batch)
            for trial in trials:
                trial.meters.data += waited
            step += 1

            logs = step % cadence.log_every == 0 or step == end
            due = step % cadence.eval_every == 0
            asked = trials[0].runtime.agreed(signals.asked())
            saves = step % cadence.save_every == 0 or asked
            if logs or due or saves or step == stretch or any(t.failed for t in trials):
                for trial, leader in led.items():
                    take(trial, leader, step)
            running = [t for t in trials if t.failed is None]
            seen: dict[str, str] = {}
            if logs:
                now = time.perf_counter()
                units = (step - logged) * train_stream.batch_size * train_stream.units_per_sample
                for trial in running:
                    told = trial.log(step, units / max(now - logged_at, 1e-9), train_stream.unit)
                    seen = seen or told
                line.show(step, {**seen, **_metric(running)})
                logged, logged_at = step, now
            looks = [t for t in running if due or step == ends[t]]
            asked = _evaluate(looks, step, led, val_cuts, val_trunk) or asked
            for trial in running:
                done = step == ends[trial] or trial.stopped
                if done or saves or asked or trial.best.get("step") == step:
                    with trial.alone():
                        save(trial, step)
            if asked:
                raise signals.Stopped(asked)
            if due or step == end:
                line.milestone(step, {**seen, **_metric(running)})
                logged, logged_at = step, time.perf_counter()
            # The list only shrinks.
            left = [t for t in running if step < ends[t] and t.stopped is None and t.failed is None]
            if len(left) < len(trials):
                break
            fetched = time.perf_counter()
        for trial in trials:
            if trial not in left:
                if trial.failed is None:
                    with trial.alone():
                        trial.leave()
                yield trial


def _trunks(
    trials: Sequence[Trial], step: int, train_stream: Stream, val_stream: Stream, caches: Caches | None
) -> tuple[Mapping[Trial, int], Trunk, Mapping[Trial, int], Trunk]:
    """(where each trial takes on in training, the trunk for that; likewise in validation), cached where planned."""
    # The one that has changed least still has all that is shared; a trial alone takes its own groups, changed or not.
    carrier = max(trials, key=lambda t: t.untouched(step))
    cuts = {t: t.untouched(step) if len(trials) > 1 else t.phase_at(step).cut for t in trials}
    # Averaged weights differ from a trunk's that has trained before.
    val_cuts = {t: min(c, t.untouched(step)) if t.settings.ema is not None else c for t, c in cuts.items()}
    planned = {cuts[t] for t in trials if cuts[t] and caches is not None and t.phase_at(step) in caches.phases}
    trunks = []
    for stream, where in ((train_stream, cuts), (val_stream, val_cuts)):
        trunk = Trunk(carrier.network, sorted(set(where.values())), carrier.runtime, stream)
        if caches is not None:
            data = caches.train if stream is train_stream else caches.val
            trunk = cached(trunk, planned.intersection(trunk.cuts), caches.store, data)
        trunks.append(trunk)
    return cuts, trunks[0], val_cuts, trunks[1]


def _settle(
    trials: Sequence[Trial], step: int, train_stream: Stream, val_stream: Stream, caches: Caches | None
) -> None:
    """The evaluations after `step` that a signal left no time for."""
    owing = [t for t in trials if t.owed]
    for trial in owing:
        trial.enter(trial.phase_at(step - 1))
    if owing:
        _, _, cuts, trunk = _trunks(owing, step - 1, train_stream, val_stream, caches)
        if asked := _evaluate(owing, step, {}, cuts, trunk):
            raise signals.Stopped(asked)
        for trial in owing:
            save(trial, step)


def _evaluate(
    due: Sequence[Trial], step: int, led: Mapping[Trial, Trial], cuts: Mapping[Trial, int], trunk: Trunk
) -> int | None:
    """All that are due in one pass over the validation split; the followers' numbers are their leaders'.

    Returns the signal that broke it off, if one did; the trials owe the evaluation then.
    """
    looked = [t for t in due if t not in led or led[t] not in due]
    if not looked:
        return None
    for trial in due:
        trial.owed = True
    if asked := looked[0].runtime.agreed(signals.asked()):
        return asked
    with ExitStack() as averaged:
        for trial in looked:
            averaged.enter_context(trial.averaged_weights())
        first, networks = looked[0], [t.network for t in looked]
        try:  # here alone: a signal that does not wait may meet the weights half exchanged, which nobody must save
            metrics = evaluate_tails(networks, [cuts[t] for t in looked], first.task, trunk, first.spec, first.runtime)
            shown = [look(network, first.task, trunk.stream, first.runtime) for network in networks]
        except signals.Stopped as stopped:
            return stopped.number
    values = {trial: seen.compute() for trial, seen in zip(looked, metrics, strict=True)}
    for trial, what in zip(looked, shown, strict=True):
        trial.run.show({f"val/{tag}": content for tag, content in what.items()}, step)
    for trial in due:
        with trial.alone():
            trial.note(step, values[trial if trial in values else led[trial]])
    return None


def save(trial: Trial, step: int) -> None:
    """A checkpoint of after `step` updates, by the first rank; the best and the newest are kept."""
    snapshot = trial.snapshot(step)
    if trial.runtime.rank == 0:
        checkpoint.save(trial.run.checkpoints, step, snapshot)
        checkpoint.prune(trial.run.checkpoints, {step, trial.best.get("step", step)}, trial.settings.keep)
    trial.runtime.wait_for_all()


def _metric(trials: Sequence[Trial]) -> dict[str, str]:
    """The best of the latest evaluations."""
    seen = [t.last[t.task.monitor] for t in trials if t.last]
    return {f"{'best ' * (len(trials) > 1)}val {trials[0].task.monitor}": f"{max(seen):.4f}"} if seen else {}
