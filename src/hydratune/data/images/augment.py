"""Augmentation of a whole batch at once, on its device: no PIL, no Python per sample.

What happens to a sample is a function of (seed, epoch, sample): each epoch has one table of uniform numbers with a row
per sample, and every operation reads its own columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hydratune.core.seeding import derive_seed

# Uniform numbers per sample and epoch: flip 0, crop 1-2, resized crop 3-6, jitter 7-9, erase 10-14, trivial 15-17.
COLUMNS = 20


class Augment:
    """What training does to images; evaluation only normalises.

    flip: mirror half of the images. crop_padding: pad by so many pixels and crop back at a random place.
    resized_crop: (smallest, largest) share of the area to cut out and resize, ratio 3/4 to 4/3 (torchvision's
    RandomResizedCrop). jitter: brightness, contrast and saturation within 1 +- jitter. erase: probability of blanking
    a rectangle (arXiv 1708.04896). trivial: one random operation at a random strength (arXiv 2103.10158).
    mixup, cutmix: alpha of the Beta distribution (arXiv 1710.09412, 1905.04899); with both, each step takes one.
    views: a fixed number of augmented views of each image, taken in turn by the epochs; null: a new one in every epoch.
    """

    def __init__(
        self,
        flip: bool = False,
        crop_padding: int = 0,
        resized_crop: tuple[float, float] | None = None,
        jitter: float = 0.0,
        erase: float = 0.0,
        trivial: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        views: int | None = None,
    ) -> None:
        for key, value in (("crop_padding", crop_padding), ("jitter", jitter), ("mixup", mixup), ("cutmix", cutmix)):
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
        self.trivial, self.mixup, self.cutmix, self.views = trivial, mixup, cutmix, views

    @property
    def distinct(self) -> int | None:
        """How many different versions of an image training sees; None: no end of them."""
        if self.mixup or self.cutmix:
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
        p = self.crop_padding
        if p:
            height, width = padded.shape[2] - 2 * p, padded.shape[3] - 2 * p
            if rows is None:
                rows = torch.arange(len(padded), device=padded.device)
            # Every crop is a strided window of the padded tensor: one gather, no loop over samples.
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            y, x = (draws[:, 1:3] * (2 * p + 1)).long().unbind(1)
            images = windows[rows, :, y, x]
        else:
            images = padded.clone() if rows is None else padded[rows]
        if self.flip:
            flipped = draws[:, 0] < 0.5
            if images.is_cpu:  # half the copying; on a GPU it would make the host wait for the count
                ids = flipped.nonzero().flatten()
                return images.index_copy_(0, ids, images[ids].flip(3))  # `images` is a copy of this batch alone
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def values(self, images: Tensor, draws: Tensor) -> Tensor:
        """Colour and geometry on float images [B, C, H, W] in 0..1."""
        if self.resized_crop is not None:
            images = _resized_crop(images, draws[:, 3:7], self.resized_crop)
        if self.trivial:
            from hydratune.data.images.trivial import trivial_augment

            images = trivial_augment(images, draws[:, 15:18])
        if self.jitter:
            images = _jitter(images, draws[:, 7:10], self.jitter)
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

    def mix(self, images: Tensor, targets: Tensor, num_classes: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """mixup or cutmix with a partner within the global batch: f(seed, step). Targets become [B, K]."""
        if not (self.mixup or self.cutmix):
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
        one_hot = F.one_hot(targets, num_classes).to(images.dtype)
        return images, torch.lerp(one_hot[partner], one_hot, weight)


def _within(axis: Tensor, start: Tensor, length: Tensor) -> Tensor:
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    return (axis >= start) & (axis < start + length)


def _resized_crop(images: Tensor, draws: Tensor, share: tuple[float, ...]) -> Tensor:
    area, ratio, y, x = draws.unbind(1)
    area = share[0] + (share[1] - share[0]) * area
    ratio = torch.exp((2 * ratio - 1) * 0.2877)  # log 4/3
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # of the image's sides
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w, h
    theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - w), (2 * y - 1) * (1 - h)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _jitter(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Brightness, contrast, saturation, in this order; grey is torchvision's 0.299 R + 0.587 G + 0.114 B."""
    brightness, contrast, saturation = (1 + strength * (2 * draws - 1)).view(-1, 3, 1, 1, 1).unbind(1)
    images = (images * brightness).clamp_(0, 1)
    images = torch.lerp(grey(images).mean((2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    return torch.lerp(grey(images), images, saturation).clamp_(0, 1)


def grey(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 1, H, W]"""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
