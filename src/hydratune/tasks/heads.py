"""Heads that tasks build on a body."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.types import Features, Levels

FINE = 4  # pixels of the image to one of the finest map that is worth a linear layer, or DeepLab's details


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

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, outputs, 1, bias=i == 0) for i, c in enumerate(channels))

    def forward(self, features: Levels) -> Tensor:
        maps = [layer(level) for layer, level in zip(self.levels, features.kept, strict=True)]
        finest = maps[0]
        for other in maps[1:]:
            finest = finest + resized(other, finest)
        return finest


def resized(maps: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    """To the resolution of `like`."""
    align = False if mode == "bilinear" else None
    return F.interpolate(maps, size=like.shape[2:], mode=mode, align_corners=align)


class _Convolutions(nn.Sequential):
    """Twice 3x3, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for taken in (inputs, outputs):
            layers += [nn.Conv2d(taken, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """Levels -> [B, K, h, w] at the finest level (arXiv 1505.04597): from the coarsest on, each is enlarged and joined
    with the next finer one.

    width: channels beside the coarsest level but one; half as many at each finer one, down to 32.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int = 256) -> None:
        super().__init__()
        coarsest, *finer = reversed(channels)
        widths = [max(width >> i, 32) for i in range(len(finer))]
        taken = [coarsest, *widths[:-1]]
        self.blocks = nn.ModuleList(_Convolutions(t + f, w) for t, f, w in zip(taken, finer, widths, strict=True))
        self.last = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, features: Levels) -> Tensor:
        x, *finer = reversed(features.kept)
        for block, level in zip(self.blocks, finer, strict=True):
            x = block(torch.cat([resized(x, level, "nearest"), level], 1))
        return self.last(x)


class _WholeImage(nn.Module):
    """What the whole image has, at every place. BatchNorm could not train on one value a channel, as a batch of one has
    here.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.GroupNorm(8 if outputs % 8 == 0 else 1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(self.norm(self.conv(x.mean((2, 3), keepdim=True))))
        return pooled.expand(-1, -1, *x.shape[2:])


class DeepLab(nn.Module):
    """Levels -> [B, K, h, w] at the finest level (DeepLabV3+, arXiv 1802.02611): pooling at several rates on the
    coarsest level, joined with details of the finest. The body keeps its strides, so that the rates are small ones.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int = 256) -> None:
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPP

        self.pyramid = ASPP(channels[-1], [2, 4, 6], width)
        self.pyramid.convs[-1] = _WholeImage(channels[-1], width)
        self.details = nn.Sequential(nn.Conv2d(channels[0], 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU(True))
        self.joined = _Convolutions(width + 48, width)
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, features: Levels) -> Tensor:
        details = self.details(features.kept[0])
        pyramid = resized(self.pyramid(features.kept[-1]), details)
        return self.last(self.joined(torch.cat([pyramid, details], 1)))


HEADS = ("linear", "unet", "deeplab")


def first_level(head: str, strides: Sequence[int]) -> int:
    """A U-Net reads all levels. The others read from a quarter of the image's resolution on, where that leaves enough:
    of small images, whose levels begin at their own resolution, all are wanted.
    """
    coarse = [i for i, stride in enumerate(strides) if stride >= FINE]
    return coarse[0] if head != "unet" and len(coarse) > 3 else 0


def dense_head(head: str, features: Features, outputs: int) -> nn.Module:
    """features: Levels of one sample. Raises ValueError for a body without levels."""
    if not isinstance(features, Levels) or not features.kept:
        raise ValueError(
            "model: this task wants a body with levels of several resolutions; resnet, vgg and most of timm's have them"
        )
    channels = [level.shape[1] for level in features.kept]
    if head == "linear":
        return LinearOnLevels(channels, outputs)
    if len(channels) < 2:
        raise ValueError(f"dataset.task.head={head}: wants a body with two levels or more, this one has one; linear")
    return UNet(channels, outputs) if head == "unet" else DeepLab(channels, outputs)
