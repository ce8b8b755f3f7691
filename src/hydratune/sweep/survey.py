"""What jobs would cost: measured on a few samples, nothing trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from hydratune.assemble import Job
from hydratune.job import gather
from hydratune.member import meter
from hydratune.types import Phase


def survey(jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
    """Per job: `fork`, `seconds` alone, and its phases: (first, last, cut, seconds of a step above the cut, below it).

    One that cannot run has `error` alone.
    """
    room, network, members, failed = gather(jobs)
    result: dict[Job, dict[str, Any]] = {job: {"error": str(error)} for job, error in failed}
    if not members:
        return result
    chosen, _ = room.precision(members[0], network if len(jobs) > 1 else members[0].network)
    room = room.at(chosen)
    stream = room.stream(room.train_split, training=True)
    meters: Any = {}
    passes = len(room.val_split) / stream.batch_size
    for member in members:
        member.network.to(room.runtime.torch_device, chosen.memory_format)
        known = meter(member, room.dataset.task, room.runtime, stream, meters)
        every = frozenset(member.network.parameters())
        whole = known.phase(Phase(0, 1, every, cut=0))
        forward = whole.seconds / 3  # of a step that trains everything
        cadence = member.settings.cadence(room.steps_per_epoch)
        phases = []
        for phase in member.phases:
            cost = known.phase(phase)
            if cost.trunk_share:
                forward = cost.trunk_seconds / cost.trunk_share
            phases.append(
                (phase.first_step, phase.last_step, phase.cut, cost.seconds - cost.trunk_seconds, cost.trunk_seconds)
            )
        steps, done = member.halts(cadence.eval_every), member.first_step
        looks = (steps - done) // cadence.eval_every + 1
        own = sum(
            (min(b, steps) - max(a, done)) * (above + below)
            for a, b, _, above, below in phases
            if b > done and a < steps
        )
        result[member.job] = {
            "fork": member.fork, "fork_name": member.network.groups[member.fork].name, "steps": steps, "done": done,
            "seconds": own + looks * passes * forward, "phases": phases, "looks": looks,
            "look": passes * forward, "cached": stream.views is not None,
        }  # fmt: skip
    return result


def scaled(cost: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same cost where everything takes `factor` times as long."""
    if "phases" not in cost:
        return dict(cost)
    phases = [(a, b, cut, above * factor, below * factor) for a, b, cut, above, below in cost["phases"]]
    return {**cost, "phases": phases, "seconds": cost["seconds"] * factor, "look": cost["look"] * factor}


def predicted(costs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of jobs side by side: each one's own part, and the trunk once for all that it serves."""
    costs = [c for c in costs if "phases" in c]
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


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Until the last of these units is done, each begun by the first worker that is free."""
    loads = [0.0] * max(workers, 1)
    for value in seconds:
        loads[loads.index(min(loads))] += value
    return max(loads)
