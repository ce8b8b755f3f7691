"""Linear heads of several trials as one batched product: many rates of a linear probe in one pass, as DINOv2 evaluates.

The product is stacked, not the optimizer: slices of one stacked weight are the trials' own Parameters. Gradients are
formed as F.linear forms them, so that each trial's weights are bit for bit what they are alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hydratune.core.types import Batch, Features
from hydratune.engine.trial import Trial

LARGEST = 2**20  # elements of one weight: above, the products are the cost, and stacking them gains nothing


class HeadStack:
    """Trials of which nothing trains but a linear head, on the same features."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)
        self._heads = [t.network.head.module for t in self.trials]
        self._weight = self._stacked("weight")  # [T, K, D]
        self._bias = self._stacked("bias") if self._heads[0].bias is not None else None  # [T, K]

    @torch.no_grad()
    def _stacked(self, name: str) -> Tensor:
        """One tensor of all trials' parameters, which become views of it."""
        parameters = [getattr(head, name) for head in self._heads]
        stacked = torch.stack(parameters)
        for parameter, part in zip(parameters, stacked, strict=True):
            parameter.data = part
        return stacked

    def step(self, step: int, features: Features, batch: Batch) -> None:
        """What `Trial.step` does, for all of them."""
        started = time.perf_counter()
        runtime, count = self.trials[0].runtime, len(self.trials)
        with torch.no_grad():
            dtype = runtime.chosen.dtype
            inputs, weight = features.to(dtype), self._weight.to(dtype)
            every, product = inputs.expand(count, *inputs.shape), weight.transpose(1, 2)
            bias = self._bias
            outputs = (
                torch.bmm(every, product) if bias is None else torch.baddbmm(bias[:, None].to(dtype), every, product)
            )
        outputs.requires_grad_()
        losses = [t.task.loss(part, batch) for t, part in zip(self.trials, outputs, strict=True)]
        means = [loss.mean() for loss in losses]
        forward = time.perf_counter() - started
        (slopes,) = torch.autograd.grad(torch.stack(means).sum(), outputs)
        for head, slope in zip(self._heads, slopes, strict=True):
            head.weight.grad = slope.t().mm(inputs).float()
            if bias is not None:
                head.bias.grad = slope.sum(0).float()
        backward = time.perf_counter() - started - forward
        seconds = forward / count, backward / count
        for trial, mean, loss in zip(self.trials, means, losses, strict=True):
            with trial.alone():
                trial.update(step, mean.detach(), batch, seconds, loss.means())


def stacked(trials: Sequence[Trial], cuts: Mapping[Trial, int], step: int) -> HeadStack | None:
    """Of those of the trials that can be; None where there are not two."""
    found: dict[object, list[Trial]] = {}
    for trial in trials:
        phase, head = trial.phase_at(step), trial.network.head
        module = head.module
        if type(module) is not nn.Linear or module.weight.numel() > LARGEST or module.weight.dtype != torch.float32:
            continue
        alone = phase.trainable == frozenset(head.names.values()) and cuts[trial] == len(trial.network.groups) - 1
        if alone and trial.state.parts == 1 and trial.runtime.world == 1 and not trial.runtime.compile:
            found.setdefault((trial.config.optimizer_class(), module.bias is None), []).append(trial)
    largest = max(found.values(), key=len, default=[])
    return HeadStack(largest) if len(largest) > 1 else None
