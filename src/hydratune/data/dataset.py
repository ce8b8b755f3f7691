"""What a data set is: a spec, a task, and three splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hydratune.data.augment import Augment
from hydratune.randomness import derive_seed
from hydratune.types import DataSpec, Task

SPLITS = ("train", "val", "test")


class Split(Protocol):
    """Samples that can be had by number. `labels` is [N] int64."""

    labels: Tensor

    def __len__(self) -> int: ...

    def read(self, ids: Tensor) -> Tensor:
        """[B] -> [B, C, H, W] uint8, on the split's device."""
        ...


class MemorySplit:
    """Images as one uint8 tensor [N, C, H, W]."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        assert images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(labels)
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, ids: Tensor) -> Tensor:
        return self.images[ids]


class Dataset(ABC):
    """Base of the data sets that are read whole: a subclass says `spec()` and `read(split)`.

    `task` is the question asked of the data, `augment` what training does to it.
    """

    def __init__(self, task: Task, augment: Augment) -> None:
        self.task, self.augment = task, augment

    @abstractmethod
    def spec(self) -> DataSpec: ...

    @abstractmethod
    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """(images [N, C, H, W] uint8, labels [N]) of "train", "val" or "test"."""

    def files(self) -> str:
        """A digest of what no name and no number in the configuration identifies; empty where there is none."""
        return ""

    def split(self, name: str) -> Split:
        """Raises ValueError for an empty split or a label outside the spec."""
        return MemorySplit(*checked(*self.read(name), name, self.spec()))


def checked(images: Tensor, labels: Tensor, name: str, spec: DataSpec) -> tuple[Tensor, Tensor]:
    if not len(labels):
        raise ValueError(f"dataset: the {name} split is empty")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= spec.num_classes:
        raise ValueError(
            f"dataset: labels of {name} reach from {low} to {high}, but there are {spec.num_classes} classes"
        )
    return images, labels


def carve(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, carved): a stratified, seeded split of sample numbers, each in ascending order.

    Every class with at least two samples gives `share` of them, rounded, and at least one.
    """
    g = torch.Generator().manual_seed(derive_seed(seed, "carve"))
    carved = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.bincount().nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=g)]
        count = max(round(share * len(members)), 1) if len(members) > 1 else 0
        carved[members[:count]] = True
    return (~carved).nonzero().flatten(), carved.nonzero().flatten()


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in 0..1, from at most 4096 images evenly spread."""
    part = images[:: max(len(images) // 4096, 1)].float().div_(255)
    mean, std = part.mean((0, 2, 3)), part.std((0, 2, 3)).clamp_min_(1e-3)
    return _rounded(mean.tolist()), _rounded(std.tolist())


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(v, 4) for v in values)


def check_share(key: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"dataset.{key}={share}: a share between 0 and 1")
