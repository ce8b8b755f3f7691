"""Heads that tasks build on a body."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.types import Features, Levels


def linear_head(features: Features, outputs: int, zero: bool = False) -> nn.Linear:
    """features: [1, D] of one sample. A Linear D -> outputs; zero: all its weights are 0 at first."""
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"model: this task wants a body that returns [B, D], it returns {got}")
    head = nn.Linear(features.shape[1], outputs)
    if zero:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return head


class LinearOnLevels(nn.Module):
    """Levels -> [B, K, h, w] at the finest level: a 1x1 convolution of each, summed after bilinear upsampling.

    It is one linear map of what all levels say of a place, as hypercolumns are (arXiv 1411.5752).
    """

    def __init__(self, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, outputs, 1, bias=i == 0) for i, c in enumerate(channels))

    def forward(self, features: Levels) -> Tensor:
        maps = [layer(level) for layer, level in zip(self.levels, features.kept, strict=True)]
        finest = maps[0]
        for other in maps[1:]:
            finest = finest + F.interpolate(other, size=finest.shape[2:], mode="bilinear", align_corners=False)
        return finest


def dense_head(features: Features, outputs: int) -> LinearOnLevels:
    """features: Levels of one sample."""
    if not isinstance(features, Levels) or not features.kept:
        raise ValueError("model: this task wants a body with levels of several resolutions; resnet and vgg have them")
    return LinearOnLevels([level.shape[1] for level in features.kept], outputs)
