"""Where pixels go before anything else happens to them: flips, rotation, crops of images and of what lies on them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hydratune.data.images.geometry import (
    cropped,
    mirrored,
    mirrored_boxes,
    resized_boxes,
    resized_crop,
    rotated,
    rotated_boxes,
    window,
)
from hydratune.data.images.mixing import Mixing


class Placing(Mixing):
    """flip, vertical_flip: mirror half of the images left to right, top to bottom. crop_padding: pad by so many pixels
    and crop back at a random place. rotate: turn by an angle within +- so many degrees, black where the image shows
    nothing (torchvision's RandomRotation, bilinear). resized_crop: (smallest, largest) share of the area to cut out and
    resize, ratio 3/4 to 4/3 (torchvision's RandomResizedCrop).
    """

    def __init__(
        self,
        flip: bool = False,
        crop_padding: int = 0,
        resized_crop: tuple[float, float] | None = None,
        rotate: float = 0.0,
        vertical_flip: bool = False,
        **mixing: float,
    ) -> None:
        super().__init__(**mixing)
        if crop_padding < 0:
            raise ValueError(f"dataset.augment.crop_padding={crop_padding}: must not be below 0")
        if resized_crop is not None and not 0 < resized_crop[0] <= resized_crop[1] <= 1:
            raise ValueError(
                f"dataset.augment.resized_crop={list(resized_crop)}: two shares, 0 < smallest <= largest <= 1"
            )
        if not 0 <= rotate <= 180:
            raise ValueError(f"dataset.augment.rotate={rotate}: degrees from 0 to 180, in either direction")
        self.flip, self.vertical_flip, self.crop_padding, self.rotate = flip, vertical_flip, crop_padding, rotate
        self.resized_crop = None if resized_crop is None else tuple(resized_crop)

    @property
    def resamples(self) -> bool:
        """Whether there are pixels between pixels to be read."""
        return bool(self.resized_crop or self.rotate)

    @property
    def places(self) -> bool:
        return bool(self.flip or self.vertical_flip or self.crop_padding or self.resamples)

    def pad(self, images: Tensor, value: int = 0) -> Tensor:
        """What `pixels` cuts from; a memory-resident split is padded once."""
        p = self.crop_padding
        return F.pad(images, (p, p, p, p), value=value) if p else images

    def pixels(self, padded: Tensor, rows: Tensor | None, draws: Tensor) -> Tensor:
        """Crop and flips: padded uint8 [N, C, H+2p, W+2p], rows [B] of it, draws [B, COLUMNS] -> uint8 [B, C, H, W]."""
        if self.crop_padding:
            images = cropped(padded, rows, draws[:, 1:3], self.crop_padding)
        else:
            images = padded.clone() if rows is None else padded[rows]
        if self.flip:
            images = mirrored(images, draws[:, 0])
        return mirrored(images, draws[:, 19], side=2) if self.vertical_flip else images

    def resampled(self, images: Tensor, draws: Tensor, mode: str = "bilinear") -> Tensor:
        """Turned, and a part of that enlarged: float images [B, C, H, W]."""
        if self.rotate:
            part = None if self.resized_crop is None else window(draws[:, 3:7], self.resized_crop)
            return rotated(images, self.angles(draws), part, mode)
        if self.resized_crop is not None:
            return resized_crop(images, draws[:, 3:7], self.resized_crop, mode)
        return images

    def angles(self, draws: Tensor) -> Tensor:
        """[B] radians"""
        return (2 * draws[:, 18] - 1) * math.radians(self.rotate)

    def placed_masks(self, masks: Tensor, draws: Tensor, outside: int) -> Tensor:
        """All of that, of masks [B, 1, H, W] uint8; `outside`: what is beyond the image. Floats where it resamples."""
        moved = self.pixels(self.pad(masks, outside), None, draws)
        if not self.resamples:
            return moved
        if not self.rotate:
            return self.resampled(moved.float(), draws, "nearest")
        values = self.resampled(moved.float() + 1, draws, "nearest")
        return torch.where(values == 0, float(outside), values - 1)

    def placed_boxes(self, boxes: Tensor, draws: Tensor, size: tuple[int, int]) -> Tensor:
        """All of that, of boxes [S, 4] with the draws of their images [S, COLUMNS]; size: (H, W)."""
        height, width = size
        if self.crop_padding:
            shift = self.crop_padding - (draws[:, 1:3] * (2 * self.crop_padding + 1)).long().flip(1)
            boxes = boxes + shift.repeat(1, 2)
        if self.flip:
            boxes = mirrored_boxes(boxes, draws[:, 0], width)
        if self.vertical_flip:
            boxes = mirrored_boxes(boxes, draws[:, 19], height, side=2)
        if self.rotate:
            boxes = rotated_boxes(boxes, self.angles(draws), size)
        if self.resized_crop is not None:
            boxes = resized_boxes(boxes, draws[:, 3:7], self.resized_crop, size)
        return boxes
