"""A feature pyramid (arXiv 1612.03144) over a body's levels, as detectors of one stage have it, and places on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hydratune.core.objects import Objects
from hydratune.core.ragged import side_by_side, starts_of
from hydratune.core.types import Features, Levels

FIRST_STRIDE = 8  # of the levels that it is built on
ADDED = 2  # coarser levels, which it has beside the body's
ROOM = 2**24  # pairs of a place and a box that are compared at a time


class Pyramid(nn.Module):
    """Levels -> as many maps [B, width, h, w], and two coarser ones. torchvision's, without the names of the maps."""

    def __init__(self, features: Features, width: int) -> None:
        """Raises ValueError for a body without levels."""
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

        super().__init__()
        if not isinstance(features, Levels) or not features.kept:
            raise ValueError(
                "model: detection wants a body with levels of several resolutions; resnet, vgg and most of timm's have "
                "them"
            )
        channels = [f.shape[1] for f in features.kept]
        self.merge: Any = FeaturePyramidNetwork(channels, width, LastLevelP6P7(width, width))

    def forward(self, features: Levels) -> list[Tensor]:
        return list(self.merge({str(i): f for i, f in enumerate(features.kept)}).values())

    def maps(self, features: Features) -> list[Tensor]:
        """Of an example, whose shapes alone are wanted."""
        assert isinstance(features, Levels)
        with torch.no_grad():
            found: list[Tensor] = self(features._replace(kept=tuple(f.float() for f in features.kept)))
            return found


def anchor_boxes(
    sizes: Sequence[Sequence[float]], ratios: Sequence[float], maps: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """[A, 4] at every place of levels [B, C, h, w] of images of that size (H, W): row by row, at each place all sizes
    of the first ratio before those of the next.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    own = tuple(tuple(level) for level in sizes[: len(maps)])
    (every,) = AnchorGenerator(own, (tuple(ratios),) * len(maps))(ImageList(torch.zeros(1, 3, *size), [size]), [*maps])
    return every


def padded(targets: Objects) -> Tensor:
    """[B, M, 6], M at least 1."""
    width = max(int(targets.boxes.lengths.max()), 1) if len(targets.boxes.lengths) else 1
    if not len(targets.boxes.values):
        return targets.boxes.values.new_zeros(len(targets.boxes.lengths), width, targets.boxes.values.shape[1])
    return side_by_side(targets.boxes.values, starts_of(targets.boxes.lengths), targets.boxes.lengths, width)


def in_parts(places: int, given: Tensor, there: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images [B, M, 6] and which of their boxes are any [B, M], so few at a time that their comparison has room."""
    parts = max(ROOM // max(places * given.shape[1], 1), 1)
    return list(zip(given.split(parts), there.split(parts), strict=True))
