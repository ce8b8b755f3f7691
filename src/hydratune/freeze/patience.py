"""Phases that end by patience: pure functions of the planned phases and of what validation said.

As fastai's users unfreeze by hand, and as Fine-Tuning Scheduler does: a phase ends once its evaluations bring nothing
better, and the next one begins with the best weights of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydratune.core.types import Phase

History = Sequence[Sequence[float]]  # [step, monitor] of every evaluation, ascending


def as_they_came(planned: Sequence[Phase], history: History) -> tuple[Phase, ...]:
    """The phases with the steps that they have had, or will have as far as is known.

    One that patience has ended gives its steps away: each one after it begins that much earlier and is as long as
    planned, and the last one takes what is left.
    """
    result: list[Phase] = []
    first = 0
    for phase in planned:
        length, end = phase.last_step - phase.first_step, planned[-1].last_step
        moved = _with_steps(phase, first, end if phase is planned[-1] else first + length)
        last = ran_out(moved, history) or moved.last_step
        result.append(_with_steps(moved, first, last))
        first = last
    return tuple(result)


def ran_out(phase: Phase, history: History) -> int | None:
    """The step after which its patience was at an end; None: it was not."""
    if phase.patience is None:
        return None
    best, since = None, 0
    for step, value in _within(phase, history):
        better = best is None or value > best or best != best
        best, since = (value, 0) if better else (best, since + 1)
        if since >= phase.patience:
            return step
    return None


def best_of(phase: Phase, history: History) -> int | None:
    """The step of its best evaluation, the first one of several; None: there was none yet."""
    seen = _within(phase, history)
    return max(seen, key=lambda e: (e[1] == e[1], e[1]))[0] if seen else None


def bests(phases: Sequence[Phase], history: History, since: int) -> set[int]:
    """Steps of the best evaluations of the phases with patience that were not over at step `since`.

    Whoever goes on from there, or from a later step, may have to go back to their weights.
    """
    found = [best_of(p, history) for p in phases if p.patience is not None and p.last_step >= since]
    return {step for step in found if step is not None}


def sentences(planned: Sequence[Phase], history: History, monitor: str) -> list[str]:
    """When and why each phase ended that patience has ended."""
    came = as_they_came(planned, history)
    values = {int(step): value for step, value in history}
    result = []
    for plan, phase, following in zip(planned, came, came[1:], strict=False):
        if ran_out(phase, history) is not None and (best := best_of(phase, history)) is not None:
            times = "1 evaluation" if phase.patience == 1 else f"{phase.patience} evaluations"
            made, wanted = (p.last_step - p.first_step for p in (phase, plan))
            result.append(
                f"phase {phase.name!r} ended after step {phase.last_step}, {made} of its {wanted} steps: no better "
                f"{monitor} in {times}; {following.name!r} begins with the weights of step {best} "
                f"({monitor} {values[best]:.4f})"
            )
    return result


def _within(phase: Phase, history: History) -> list[tuple[int, float]]:
    """Its evaluations. What is seen at its first step is the phase's before."""
    return [(int(step), value) for step, value in history if phase.first_step < step <= phase.last_step]


def _with_steps(phase: Phase, first: int, last: int) -> Phase:
    """The very same where nothing changes."""
    if (first, last) == (phase.first_step, phase.last_step):
        return phase
    return replace(phase, first_step=first, last_step=last)
