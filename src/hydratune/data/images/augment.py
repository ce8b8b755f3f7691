"""Augmentation of a whole batch at once, on its device: no PIL, no Python per sample.

What happens to a sample is a function of (seed, epoch, sample): each epoch has one table of uniform numbers with a row
per sample, and every operation reads its own columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hydratune.core.objects import Objects, clipped, owner_of
from hydratune.core.ragged import Ragged
from hydratune.core.seeding import derive_seed
from hydratune.data.images.colour import jitter
from hydratune.data.images.placing import Placing
from hydratune.data.images.trivial import trivial_augment, trivial_boxes, trivial_moves

# Uniform numbers per sample and epoch: flip 0, crop 1-2, resized crop 3-6, jitter 7-9, erase 10-14, trivial 15-17,
# rotate 18, vertical flip 19.
COLUMNS = 20
VISIBLE = 0.3  # of a box that is cut, less is no longer it


class Augment(Placing):
    """What training does to images; evaluation only normalises.

    jitter: brightness, contrast and saturation within 1 +- jitter. erase: probability of blanking a rectangle (arXiv
    1708.04896). trivial: one random operation at a random strength (arXiv 2103.10158). views: a fixed number of
    augmented views of each image, taken in turn by the epochs; null: a new one in every epoch. visible: the least share
    of a box that must be left in the image; null: 0.3.
    """

    def __init__(
        self,
        jitter: float = 0.0,
        erase: float = 0.0,
        trivial: bool = False,
        views: int | None = None,
        visible: float | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if jitter < 0:
            raise ValueError(f"dataset.augment.jitter={jitter}: must not be below 0")
        if not 0 <= erase <= 1:
            raise ValueError(f"dataset.augment.erase={erase}: a probability between 0 and 1")
        if views is not None and views < 1:
            raise ValueError(f"dataset.augment.views={views}: at least 1")
        if visible is not None and not 0 < visible <= 1:
            raise ValueError(f"dataset.augment.visible={visible}: a share above 0, at most 1")
        self.jitter, self.erase = jitter, erase
        self.trivial, self.views, self.visible = trivial, views, visible

    @property
    def distinct(self) -> int | None:
        """How many different versions of an image training sees; None: no end of them."""
        if self.mixes:
            return None
        return self.views if self.per_sample else 1

    @property
    def per_sample(self) -> bool:
        return bool(self.places or self.erase or self.in_floats)

    @property
    def in_floats(self) -> bool:
        """Whether there is anything for `values` to do."""
        return bool(self.resamples or self.jitter or self.trivial)

    def table(self, seed: int, epoch: int, num_samples: int) -> Tensor:
        """[num_samples, COLUMNS] uniform in [0, 1), the same whatever reads it."""
        epoch = epoch if self.views is None else epoch % self.views
        g = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
        return torch.rand(num_samples, COLUMNS, generator=g)

    def masks(self, masks: Tensor, draws: Tensor, outside: int) -> Tensor:
        """What the geometry of their images does to masks, uint8 [B, H, W]; `outside`: what is beyond the image."""
        moved = self.placed_masks(masks.unsqueeze(1), draws, outside)
        if self.trivial:
            moved = trivial_moves(moved.float(), draws[:, 15:18], outside)
        return moved.round().to(torch.uint8).squeeze(1) if moved.is_floating_point() else moved.squeeze(1)

    def objects(self, objects: Objects, draws: Tensor, size: tuple[int, int]) -> Objects:
        """What it does to boxes in images of that size (H, W); draws [B, COLUMNS]. What is left of them is clipped to
        the image, and those of which less than `visible` is left are dropped.
        """
        own = draws[owner_of(objects.boxes)]
        height, width = size
        boxes = self.placed_boxes(objects.boxes.values[:, :4], own, size)
        if self.trivial:
            boxes = trivial_boxes(boxes, own[:, 15:18], size)
        inside = clipped(boxes, width, height)
        left, whole = ((b[:, 2:] - b[:, :2]).clamp_min(0).prod(1) for b in (inside, boxes))
        values = torch.cat([inside, objects.boxes.values[:, 4:]], 1)
        moved = Objects(Ragged(values, objects.boxes.lengths), objects.sizes)
        return moved.where((left >= (self.visible or VISIBLE) * whole) & (left > 0))

    def values(self, images: Tensor, draws: Tensor) -> Tensor:
        """Colour and geometry on float images [B, C, H, W] in 0..1."""
        images = self.resampled(images, draws)
        if self.trivial:
            images = trivial_augment(images, draws[:, 15:18])
        if self.jitter:
            images = jitter(images, draws[:, 7:10], self.jitter)
        return images

    def blank(self, images: Tensor, draws: Tensor) -> Tensor:
        """Random erasing of normalised images, to the mean (zero): 2 to 33% of the area, ratio 0.3 to 3.3."""
        if not self.erase:
            return images
        hit, area, ratio, y, x = draws[:, 10:15].unbind(1)
        height, width = images.shape[2:]
        area = (0.02 + 0.31 * area) * height * width
        ratio = torch.exp((2 * ratio - 1) * 1.194)  # log 3.3
        h = (area * ratio).sqrt().round().clamp(1, height)
        w = (area / ratio).sqrt().round().clamp(1, width)
        top, left = (y * (height - h + 1)).floor(), (x * (width - w + 1)).floor()
        rows = torch.arange(height, device=images.device).view(1, -1, 1)
        columns = torch.arange(width, device=images.device).view(1, 1, -1)
        inside = _within(rows, top, h) & _within(columns, left, w) & (hit < self.erase).view(-1, 1, 1)
        return images.masked_fill(inside.unsqueeze(1), 0.0)


def _within(axis: Tensor, start: Tensor, length: Tensor) -> Tensor:
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    return (axis >= start) & (axis < start + length)
