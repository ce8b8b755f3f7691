"""Linear heads of several trials as one product: many rates of a linear probe in one pass, as DINOv2 evaluates.

The product is stacked, not the optimizer: slices of one stacked weight are the trials' own Parameters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.engine.trial import Trial
from hydratune.types import Batch, Features


class HeadStack:
    """Trials of which nothing trains but a linear head, on the same features."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)
        self._heads = [t.network.head.module for t in self.trials]
        weight = self._stacked("weight")
        assert weight is not None
        self._weight = weight  # [T * K, D]
        self._bias = self._stacked("bias")  # [T * K]

    @torch.no_grad()
    def _stacked(self, name: str) -> Tensor | None:
        """One tensor of all trials' parameters, which become views of it."""
        parameters = [getattr(head, name) for head in self._heads]
        if parameters[0] is None:
            return None
        stacked = torch.cat(parameters)
        for parameter, part in zip(parameters, stacked.split(len(parameters[0])), strict=True):
            parameter.data = part
        return stacked.requires_grad_()

    def step(self, step: int, features: Features, batch: Batch) -> None:
        """What `Trial.step` does, for all of them."""
        started = time.perf_counter()
        first = self.trials[0]
        with first.runtime.autocast():
            outputs = F.linear(features, self._weight, self._bias)
        parts = outputs.split(outputs.shape[-1] // len(self.trials), dim=-1)
        losses = [t.task.loss(part, batch) for t, part in zip(self.trials, parts, strict=True)]
        means = [loss.sum / loss.count for loss in losses]
        forward = time.perf_counter() - started
        stacked = [t for t in (self._weight, self._bias) if t is not None]
        gradients = torch.autograd.grad(torch.stack(means).sum(), stacked)
        for name, gradient in zip(("weight", "bias"), gradients, strict=False):
            for head, part in zip(self._heads, gradient.split(len(gradient) // len(self._heads)), strict=True):
                getattr(head, name).grad = part
        share = len(self.trials)
        passed = (time.perf_counter() - started - forward) / share
        for trial, mean in zip(self.trials, means, strict=True):
            with trial.alone():
                trial.update(step, mean.detach(), batch, forward / share, passed)


def stacked(trials: Sequence[Trial], cuts: Mapping[Trial, int], step: int) -> HeadStack | None:
    """Of those of the trials that can be; None where there are not two."""
    found: dict[object, list[Trial]] = {}
    for trial in trials:
        phase, head = trial.phase_at(step), trial.network.head
        linear = type(head.module) is nn.Linear and not trial.runtime.compile
        alone = phase.trainable == frozenset(head.names.values()) and cuts[trial] == len(trial.network.groups) - 1
        if linear and alone and trial.settings.accumulate == 1 and trial.runtime.world == 1:
            found.setdefault(trial.recipe.optimizer_class(), []).append(trial)
    largest = max(found.values(), key=len, default=[])
    return HeadStack(largest) if len(largest) > 1 else None
