"""Trials that would do the same for a while: one does it, the others take over its state when somebody looks.

The linear probe of LP-FT is head_only's run as long as rate and schedule are the same function of the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hydratune.engine.state import digest, optimizer_state
from hydratune.engine.trial import Trial
from hydratune.models.network import Network


def followers(trials: Sequence[Trial], step: int, stretch: int) -> dict[Trial, Trial]:
    """Follower -> leader, where both hold the same state and every update of [step, stretch) will be the same."""
    result: dict[Trial, Trial] = {}
    if len(trials) == 1:
        return result
    by_course: dict[object, list[Trial]] = {}
    for trial in trials:
        by_course.setdefault(_course(trial, step, stretch), []).append(trial)
    for same in by_course.values():
        leaders: dict[object, Trial] = {}
        for trial in same if len(same) > 1 else ():
            leader = leaders.setdefault(_state(trial), trial)
            if leader is not trial:
                result[trial] = leader
    return result


def _course(trial: Trial, step: int, stretch: int) -> object:
    """All that the updates of [step, stretch) depend on besides the trial's state and the batches."""
    phase, settings, config = trial.phase_at(step), trial.settings, trial.config
    rates = {
        (name, group["weight_decay"], *(trial.rate_at(group, phase, s) for s in range(step, stretch)))
        for group in trial.optimizer.param_groups
        for name in group["names"]
        if name in phase.trainable
    }
    optimizer = (config.optimizer_class(), repr(sorted(config.options.items())), config.l2_sp)
    odd = (settings.on_nonfinite, settings.skip_budget, repr(trial.state.skips), trial.state.parts)
    trains = (settings.clip, settings.ema, settings.patience, trial.seed, *odd)
    return phase.trainable, phase.cut, phase.norm, frozenset(rates), optimizer, trains


def _state(trial: Trial) -> object:
    """Digest of its tensors, and of its optimizer's, in an order that their names fix."""
    own, (tensors, values) = trial.network.state_dict(), optimizer_state(trial.optimizer)
    every = [*(own[n] for n in sorted(own)), *(tensors[k] for k in sorted(tensors))]
    return digest(every), repr(sorted(values.items()))


@torch.no_grad()
def take(trial: Trial, leader: Trial, step: int) -> None:
    """Be what `leader` is after `step` updates of the same course."""
    phase = trial.phase_at(step - 1)
    trial.failed = leader.failed
    theirs = Network(leader.network.groups[phase.cut :]).state_dict()
    own = trial.network.state_dict()
    for name, tensor in theirs.items():
        own[name].copy_(tensor)
    trial.state.skips, trial.state.parts = leader.state.skips, leader.state.parts
    for name in leader.ema.keys() & trial.ema.keys() & theirs.keys():
        trial.ema[name].copy_(leader.ema[name])
    for name in phase.trainable:
        state = leader.optimizer.state.get(leader.parameters[name], {})
        copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        trial.optimizer.state[trial.parameters[name]] = copied
    for group in trial.optimizer.param_groups:
        group["lr"] = trial.rate_at(group, phase, step - 1)
    trial.meters.take(leader.meters)
