"""Bodies that offer levels: outputs of several resolutions, for tasks that ask about pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hydratune.core.types import Backbone, Levels

COARSEST = 32  # pixels of the image to one of the map


class Level(nn.Module):
    """A layer group between levels: what it gives goes on to the next one, and, if `keep`, to the head as well.

    channels_last: whether it gives [B, H, W, C], as some transformers do; levels are [B, C, H, W].
    """

    def __init__(self, module: nn.Module, keep: bool, channels_last: bool = False) -> None:
        super().__init__()
        self.module, self.keep, self.channels_last = module, keep, channels_last

    def forward(self, features: Tensor | Levels) -> Levels:
        kept, x = features if isinstance(features, Levels) else ((), features)
        y = self.module(x)
        if not self.keep:
            return Levels(kept, y)
        return Levels((*kept, y.permute(0, 3, 1, 2) if self.channels_last else y), y)


def with_levels(groups: Sequence[tuple[str, nn.Module]], kept: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The groups, of which those named in `kept` give a level each, the finest first. None of them may pool."""
    return [(name, Level(module, name in kept)) for name, module in groups]


@torch.no_grad()
def wanted_levels(body: Backbone, example: Tensor, first: Callable[[Sequence[int]], int]) -> Backbone:
    """The body, giving its levels from the one on that `first` chooses, by their strides on an example [1, C, H, W]."""
    if not all(isinstance(module, Level) for _, module in body.groups):
        return body
    features: Any = example
    for _, module in body.groups:
        features = module.eval()(features)
    chosen = first([round(example.shape[2] / level.shape[2]) for level in features.kept])
    groups, number = [], 0
    for name, module in body.groups:
        assert isinstance(module, Level)
        groups.append((name, Level(module.module, module.keep and number >= chosen, module.channels_last)))
        number += module.keep
    return replace(body, groups=groups)


@torch.no_grad()
def levels_of(groups: Sequence[tuple[str, nn.Module]], example: Tensor) -> list[tuple[str, nn.Module]]:
    """The groups, of which the last one of each resolution gives a level, as measured on an example [1, C, H, W].

    What lies behind the last level is left out. Empty where there are not two of them.
    """
    size = (example.shape[2], example.shape[3])
    resolutions: list[tuple[int, bool] | None] = []
    features = example
    for _, module in groups:
        training = module.training
        features = module.eval()(features)
        module.train(training)
        resolutions.append(_resolution(features, size))
    found = [r for r in resolutions if r is not None]
    if len(set(found)) < 2:
        return []
    result: list[tuple[str, nn.Module]] = []
    for i, ((name, module), own) in enumerate(zip(groups, resolutions, strict=True)):
        if all(r is None for r in resolutions[i:]):
            break
        keep = own is not None and 1 < own[0] <= COARSEST and own not in resolutions[i + 1 :]
        result.append((name, Level(module, keep, own is not None and own[1])))
    return result


def _resolution(features: Tensor, size: tuple[int, int]) -> tuple[int, bool] | None:
    """(pixels of the image to one of the map, whether channels come last); None where it is no map of the image."""
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    for first, channels_last in ((2, False), (1, True)):
        ratio = size[0] / features.shape[first]
        if ratio < 1:
            continue
        # of small maps the ratio is no whole number, and mostly near a power of two
        for stride in (2 ** round(math.log2(ratio)), round(ratio)):
            if [-(-length // stride) for length in size] == list(features.shape[first : first + 2]):
                return stride, channels_last
    return None
