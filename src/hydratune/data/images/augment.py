"""Augmentation of a whole batch at once, on its device: no PIL, no Python per sample.

What happens to a sample is a function of (seed, epoch, sample): each epoch has one table of uniform numbers with a row
per sample, and every operation reads its own columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hydratune.core.objects import Objects, clipped, owner_of
from hydratune.core.ragged import Ragged
from hydratune.core.seeding import derive_seed
from hydratune.data.images.colour import jitter
from hydratune.data.images.geometry import cropped, mirrored, resized_boxes, resized_crop
from hydratune.data.images.trivial import trivial_augment, trivial_boxes, trivial_moves

# Uniform numbers per sample and epoch: flip 0, crop 1-2, resized crop 3-6, jitter 7-9, erase 10-14, trivial 15-17.
COLUMNS = 20
VISIBLE = 0.3  # of a box that is cut, less is no longer it


class Mixing:
    """mixup, cutmix: alpha of the Beta distribution (arXiv 1710.09412, 1905.04899); with both, each step takes one."""

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        for key, value in (("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise ValueError(f"dataset.augment.{key}={value}: must not be below 0")
        self.mixup, self.cutmix = mixup, cutmix

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def mix(self, images: Tensor, targets: Tensor, num_classes: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """mixup or cutmix with a partner within the global batch: f(seed, step). Class numbers become
        [B, K], numbers their weighted mean.
        """
        if not self.mixes:
            return images, targets
        # numpy's Beta: torch.distributions draws from the default generator only
        import numpy as np

        rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "mix", step)))
        cut = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        weight = float(rng.beta(alpha, alpha))
        partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
        if cut:
            height, width = images.shape[2:]
            h, w = round(height * (1 - weight) ** 0.5), round(width * (1 - weight) ** 0.5)
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            images = images.clone()
            images[:, :, top : top + h, left : left + w] = images[partner, :, top : top + h, left : left + w]
            weight = 1 - h * w / (height * width)
        else:
            images = torch.lerp(images[partner], images, weight)
        shares = targets if targets.is_floating_point() else F.one_hot(targets, num_classes)
        shares = shares.to(images.dtype)
        return images, torch.lerp(shares[partner], shares, weight)


class Augment(Mixing):
    """What training does to images; evaluation only normalises.

    flip: mirror half of the images. crop_padding: pad by so many pixels and crop back at a random place.
    resized_crop: (smallest, largest) share of the area to cut out and resize, ratio 3/4 to 4/3 (torchvision's
    RandomResizedCrop). jitter: brightness, contrast and saturation within 1 +- jitter. erase: probability of blanking
    a rectangle (arXiv 1708.04896). trivial: one random operation at a random strength (arXiv 2103.10158).
    views: a fixed number of augmented views of each image, taken in turn by the epochs; null: a new one in every epoch.
    visible: the least share of a box that must be left in the image; null: 0.3.
    """

    def __init__(
        self,
        flip: bool = False,
        crop_padding: int = 0,
        resized_crop: tuple[float, float] | None = None,
        jitter: float = 0.0,
        erase: float = 0.0,
        trivial: bool = False,
        views: int | None = None,
        visible: float | None = None,
        **mixing: float,
    ) -> None:
        super().__init__(**mixing)
        for key, value in (("crop_padding", crop_padding), ("jitter", jitter)):
            if value < 0:
                raise ValueError(f"dataset.augment.{key}={value}: must not be below 0")
        if not 0 <= erase <= 1:
            raise ValueError(f"dataset.augment.erase={erase}: a probability between 0 and 1")
        if resized_crop is not None and not 0 < resized_crop[0] <= resized_crop[1] <= 1:
            raise ValueError(
                f"dataset.augment.resized_crop={list(resized_crop)}: two shares, 0 < smallest <= largest <= 1"
            )
        if views is not None and views < 1:
            raise ValueError(f"dataset.augment.views={views}: at least 1")
        self.flip, self.crop_padding, self.jitter, self.erase = flip, crop_padding, jitter, erase
        self.resized_crop = None if resized_crop is None else tuple(resized_crop)
        if visible is not None and not 0 < visible <= 1:
            raise ValueError(f"dataset.augment.visible={visible}: a share above 0, at most 1")
        self.trivial, self.views, self.visible = trivial, views, visible

    @property
    def distinct(self) -> int | None:
        """How many different versions of an image training sees; None: no end of them."""
        if self.mixes:
            return None
        return self.views if self.per_sample else 1

    @property
    def per_sample(self) -> bool:
        return bool(self.flip or self.crop_padding or self.resized_crop or self.jitter or self.erase or self.trivial)

    def table(self, seed: int, epoch: int, num_samples: int) -> Tensor:
        """[num_samples, COLUMNS] uniform in [0, 1), the same whatever reads it."""
        epoch = epoch if self.views is None else epoch % self.views
        g = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
        return torch.rand(num_samples, COLUMNS, generator=g)

    def pad(self, images: Tensor) -> Tensor:
        """What `crop` cuts from; a memory-resident split is padded once."""
        p = self.crop_padding
        return F.pad(images, (p, p, p, p)) if p else images

    def pixels(self, padded: Tensor, rows: Tensor | None, draws: Tensor) -> Tensor:
        """Crop and flip: padded uint8 [N, C, H+2p, W+2p], rows [B] of it, draws [B, COLUMNS] -> uint8 [B, C, H, W]."""
        if self.crop_padding:
            images = cropped(padded, rows, draws[:, 1:3], self.crop_padding)
        else:
            images = padded.clone() if rows is None else padded[rows]
        return mirrored(images, draws[:, 0]) if self.flip else images

    def masks(self, masks: Tensor, draws: Tensor, outside: int) -> Tensor:
        """What the geometry of their images does to masks, uint8 [B, H, W]; `outside`: what is beyond the image."""
        p = self.crop_padding
        moved = self.pixels(F.pad(masks.unsqueeze(1), (p, p, p, p), value=outside), None, draws)
        if self.resized_crop is None and not self.trivial:
            return moved.squeeze(1)
        values = moved.float()
        if self.resized_crop is not None:
            values = resized_crop(values, draws[:, 3:7], self.resized_crop, "nearest")
        if self.trivial:
            values = trivial_moves(values, draws[:, 15:18], outside)
        return values.round().to(torch.uint8).squeeze(1)

    def objects(self, objects: Objects, draws: Tensor, size: tuple[int, int]) -> Objects:
        """What it does to boxes in images of that size (H, W); draws [B, COLUMNS]. What is left of them is clipped to
        the image, and those of which less than `visible` is left are dropped.
        """
        own = draws[owner_of(objects.boxes)]
        boxes = objects.boxes.values[:, :4]
        height, width = size
        if self.crop_padding:
            shift = self.crop_padding - (own[:, 1:3] * (2 * self.crop_padding + 1)).long().flip(1)
            boxes = boxes + shift.repeat(1, 2)
        if self.flip:
            mirrored_boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            boxes = torch.where((own[:, 0] < 0.5).unsqueeze(1), mirrored_boxes, boxes)
        if self.resized_crop is not None:
            boxes = resized_boxes(boxes, own[:, 3:7], self.resized_crop, size)
        if self.trivial:
            boxes = trivial_boxes(boxes, own[:, 15:18], size)
        inside = clipped(boxes, width, height)
        left, whole = ((b[:, 2:] - b[:, :2]).clamp_min(0).prod(1) for b in (inside, boxes))
        values = torch.cat([inside, objects.boxes.values[:, 4:]], 1)
        moved = Objects(Ragged(values, objects.boxes.lengths), objects.sizes)
        return moved.where((left >= (self.visible or VISIBLE) * whole) & (left > 0))

    def values(self, images: Tensor, draws: Tensor) -> Tensor:
        """Colour and geometry on float images [B, C, H, W] in 0..1."""
        if self.resized_crop is not None:
            images = resized_crop(images, draws[:, 3:7], self.resized_crop)
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
