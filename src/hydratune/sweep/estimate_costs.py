"""What jobs would cost: measured on a few samples, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from hydratune.config.job import Job
from hydratune.core.types import Phase
from hydratune.experiment.job_group import Meters, gather, meter
from hydratune.experiment.prepare import PreparedJob
from hydratune.experiment.selfplay import learning
from hydratune.freeze.cost import PhaseCost
from hydratune.freeze.phases import last_thaw
from hydratune.record.screen import Screen


def estimate_costs(jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
    """Per job `fork`, `fork_name`, and what it costs: `seconds` and `operations`, each as `predicted` takes them.

    A clock says how long it will take; what is decided by it would be decided otherwise the next time, so plans are
    made of operations. One that cannot run has `error` alone.
    """
    asked = dict(zip(learning(jobs, Screen(quiet=True)), jobs, strict=True))
    found = _estimated(list(asked))
    return {asked[job]: cost for job, cost in found.items()}


def _estimated(jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
    group, network, ready, failed = gather(jobs)
    result: dict[Job, dict[str, Any]] = {job: {"error": str(error)} for job, error in failed}
    if not ready:
        return result
    numerics, _ = group.numerics(ready[0], network if len(jobs) > 1 else ready[0].network)
    group = group.at(numerics)
    stream = group.stream(group.train_split, training=True)
    meters: Meters = {}
    passes = len(group.val_split) / stream.batch_size
    for prepared in ready:
        prepared.network.to(group.runtime.torch_device, numerics.precision.memory_format)
        known = meter(prepared, group, stream, meters)
        steps, cached = group.steps_per_epoch, stream.views is not None
        result[prepared.job] = {
            "precision": str(numerics.precision),
            "fork": prepared.fork,
            "fork_name": prepared.network.groups[prepared.fork].name,
            "seconds": _cost(prepared, steps, passes, cached, known.phase),
            "operations": _cost(prepared, steps, passes, cached, known.operations_of),
        }
    return result


def autotuned(job: Job) -> str:
    """The precision and layout that the job would choose by itself."""
    group, _, ready, failed = gather(learning([job], Screen(quiet=True)))
    if failed:
        raise failed[0][1]
    return str(group.numerics(ready[0], ready[0].network)[0].precision)


Cost = dict[str, Any]


def _cost(
    prepared: PreparedJob, steps_per_epoch: int, passes: float, cached: bool, measured: Callable[..., PhaseCost]
) -> Cost:
    """In what `measured` counts a step in: `whole` alone, and by phase (first, last, cut, above the cut, below it)."""
    forward = measured(Phase(0, 1, frozenset(prepared.network.parameters()), cut=0)).seconds / 3
    cadence = prepared.training.settings.cadence(steps_per_epoch, prepared.phases[-1].last_step)
    phases = []
    for phase in prepared.phases:
        cost = measured(phase, prepared.training.settings.recompute)
        if cost.trunk_share:
            forward = cost.trunk_seconds / cost.trunk_share
        above = cost.seconds - cost.trunk_seconds
        phases.append((phase.first_step, phase.last_step, phase.cut, above, cost.trunk_seconds))
    steps, done = prepared.halts(cadence.eval_every), prepared.first_step
    looks = (steps - done) // cadence.eval_every + 1
    own = sum((min(b, steps) - max(a, done)) * (c + d) for a, b, _, c, d in phases if b > done and a < steps)
    return {
        "fork": prepared.fork, "last_phase": last_thaw(prepared.phases), "steps": steps, "done": done,
        "whole": own + looks * passes * forward, "phases": phases, "looks": looks, "look": passes * forward,
        "cached": cached,
    }  # fmt: skip


def sped_up(cost: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same cost where everything takes 1 / `factor` of the time."""
    if "seconds" not in cost:
        return dict(cost)
    own = cost["seconds"]
    phases = [(a, b, cut, above / factor, below / factor) for a, b, cut, above, below in own["phases"]]
    return {**cost, "seconds": {**own, "phases": phases, "whole": own["whole"] / factor, "look": own["look"] / factor}}


def seconds_of(cost: Mapping[str, Any]) -> float:
    """Of the job alone; 0 where that is not known."""
    return cost["seconds"]["whole"] if "seconds" in cost else 0.0


def seconds_together(costs: Sequence[Mapping[str, Any]]) -> float:
    return predicted([c["seconds"] for c in costs if "seconds" in c])


def predicted(costs: Sequence[Mapping[str, Any]]) -> float:
    """What jobs cost side by side: each one's own part, and the trunk once for all that it serves."""
    total, marks = 0.0, sorted({m for c in costs for a, b, *_ in c["phases"] for m in (a, b)})
    for first, last in pairwise(marks):
        below = [0.0]
        for cost in costs:
            phase = next((p for p in cost["phases"] if p[0] <= first < p[1]), None)
            begun = min(last, cost["steps"]) - max(first, cost["done"])
            if phase is None or begun <= 0:
                continue
            total += begun * phase[3]
            shares = phase[2] == min(p[2] for p in cost["phases"] if p[0] <= first)
            if shares:
                below.append(0.0 if cost["cached"] else begun * phase[4])
            else:
                total += begun * phase[4]
        total += max(below)
    lowest = max((c["fork"] for c in costs), default=0)
    return (
        total
        + sum(c["looks"] * c["look"] for c in costs if not c["fork"] or c["fork"] < lowest)
        + max((c["looks"] * c["look"] for c in costs if c["fork"] and c["fork"] == lowest), default=0.0)
    )
