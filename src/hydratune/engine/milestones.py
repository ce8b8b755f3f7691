"""What happens between steps: evaluations, all of them in one pass, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from hydratune.data.stream import Stream
from hydratune.distributed import signals
from hydratune.engine.evaluate import evaluate_tails, previews
from hydratune.engine.stretch import Streams, Trunks
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, Trunk
from hydratune.record import checkpoint


def evaluate_due(
    due: Sequence[Trial], step: int, led: Mapping[Trial, Trial], trunks: Trunks, evals: Mapping[str, Stream]
) -> int | None:
    """All that are due in one pass over each set; the followers' numbers are their leaders'.

    Returns the signal that broke it off, if one did; the trials owe the evaluation then.
    """
    seen_by = [t for t in due if t not in led or led[t] not in due]
    if not seen_by:
        return None
    for trial in due:
        trial.state.owed = True
    if asked := seen_by[0].runtime.agreed(signals.asked()):
        return asked
    cuts, trunk = [trunks.val_cuts[t] for t in seen_by], trunks.val
    with ExitStack() as averaged:
        for trial in seen_by:
            averaged.enter_context(trial.averaged_weights())
        first, networks = seen_by[0], [t.network for t in seen_by]
        try:  # here alone: a signal that does not wait may meet the weights half exchanged, which nobody must save
            metrics = evaluate_tails(networks, cuts, first.task, trunk, first.spec, first.runtime)
            shown = [previews(network, first.task, trunk.stream, first.runtime) for network in networks]
            others = {}
            for name, stream in evals.items():
                own = Trunk(trunk.network, trunk.cuts, trunk.runtime, stream)
                others[name] = evaluate_tails(networks, cuts, first.task, own, first.spec, first.runtime)
        except signals.Stopped as stopped:
            return stopped.number
    values = {trial: seen.compute() for trial, seen in zip(seen_by, metrics, strict=True)}
    beside = {t: {name: found[i].compute() for name, found in others.items()} for i, t in enumerate(seen_by)}
    for trial, what in zip(seen_by, shown, strict=True):
        trial.run.show({f"val/{tag}": content for tag, content in what.items()}, step)
    for trial in due:
        source = trial if trial in values else led[trial]
        with trial.alone():
            trial.note(step, values[source], beside[source])
    return None


def settle(trials: Sequence[Trial], step: int, streams: Streams, caches: Caches | None) -> None:
    """The evaluations after `step` that a signal left no time for."""
    owing = [t for t in trials if t.state.owed]
    for trial in owing:
        trial.enter(trial.phase_at(step - 1))
    if owing:
        trunks = Trunks.of(owing, step - 1, streams, caches)
        if asked := evaluate_due(owing, step, {}, trunks, streams.evals):
            raise signals.Stopped(asked)
        for trial in owing:
            save(trial, step)


def save(trial: Trial, step: int) -> None:
    """A checkpoint of after `step` updates, by the first rank; the best and the newest are kept."""
    snapshot = trial.snapshot(step)
    if trial.runtime.rank == 0:
        trial.run.save(step, snapshot)
        oldest, *_ = checkpoint.steps(trial.run.checkpoints)[-trial.settings.keep :]
        checkpoint.prune(trial.run.checkpoints, {step, *trial.bests(oldest)}, trial.settings.keep)
    trial.runtime.wait_for_all()


def best_metric(trials: Sequence[Trial]) -> dict[str, str]:
    """The best of the latest evaluations."""
    seen = [t.state.history[-1][1] for t in trials if t.state.history]
    return {f"{'best ' * (len(trials) > 1)}{trials[0].plan.monitor.label}": f"{max(seen):.4f}"} if seen else {}
