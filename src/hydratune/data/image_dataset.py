"""Data sets of images that are read whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hydratune.data.augment import Augment
from hydratune.data.dataset import Dataset
from hydratune.data.image_stream import ImageStream, MemorySplit, Split
from hydratune.record import pictures
from hydratune.types import Batch, Body, DataSpec, Features, Task


class ImageDataset(Dataset):
    """Base of the sets of images: a subclass says `spec()` and `read(split)`.

    `augment` is what training does to them.
    """

    def __init__(self, task: Task, augment: Augment) -> None:
        super().__init__(task)
        self.augment = augment

    @abstractmethod
    def spec(self) -> DataSpec: ...

    @abstractmethod
    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """(images [N, C, H, W] uint8, labels [N]) of "train", "val" or "test"."""

    def split(self, name: str) -> Split:
        """Raises ValueError for an empty split or a label outside the spec."""
        return MemorySplit(*checked(*self.read(name), name, self.spec()))

    def supplied(self) -> Mapping[str, Any]:
        return {"input_shape": self.spec().input_shape}

    def example(self, body: Body) -> Features:
        """[1, C, H, W] zeros"""
        channels, height, width = self.spec().input_shape
        return torch.zeros(1, body.in_channels or channels, height, width)

    def stream(
        self, split: Split, body: Body, batch_size: int, device: torch.device, seed: int,
        memory_format: torch.memory_format, rank: int, world: int, training: bool,
    ) -> ImageStream:  # fmt: skip
        augment = self.augment if training else None
        return ImageStream(
            split, self.spec(), batch_size, device, body.in_channels, augment, seed, memory_format, rank, world
        )

    def show_batch(self, batch: Batch) -> Mapping[str, Tensor]:
        spec = self.spec()
        return {"batch": pictures.grid(pictures.visible(batch.inputs[:32], spec.mean, spec.std))}


def checked(images: Tensor, labels: Tensor, name: str, spec: DataSpec) -> tuple[Tensor, Tensor]:
    if not len(labels):
        raise ValueError(f"dataset: the {name} split is empty")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= spec.num_classes:
        raise ValueError(
            f"dataset: labels of {name} reach from {low} to {high}, but there are {spec.num_classes} classes"
        )
    return images, labels


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in 0..1, from at most 4096 images evenly spread."""
    part = images[:: max(len(images) // 4096, 1)].float().div_(255)
    mean, std = part.mean((0, 2, 3)), part.std((0, 2, 3)).clamp_min_(1e-3)
    return _rounded(mean.tolist()), _rounded(std.tolist())


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values)
