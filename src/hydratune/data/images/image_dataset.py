"""Data sets of images that are read whole."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hydratune.core.task import Task
from hydratune.core.types import Backbone, Batch, Features, ImageSpec
from hydratune.data.dataset import Dataset
from hydratune.data.images.augment import Augment
from hydratune.data.images.image_stream import ImageStream, MemorySplit, Split
from hydratune.data.stream import Batches, Placement
from hydratune.record import pictures

LISTED = 12  # classes whose names are shown


class ImageDataset(Dataset):
    """Base of the sets of images: a subclass says `spec()` and `read(split)`.

    `augment` is what training does to them.
    """

    def __init__(self, task: Task, augment: Augment, sampling: str = "shuffle") -> None:
        super().__init__(task, sampling)
        if augment.mixes and not task.mixes:
            raise ValueError(
                "dataset.augment.mixup, cutmix: what this task asks for cannot be mixed; 0 leaves them out"
            )
        self.augment = augment

    @abstractmethod
    def spec(self) -> ImageSpec: ...

    @abstractmethod
    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """(images [N, C, H, W] uint8, labels [N]) of "train", "val" or "test"."""

    def whence(self, name: str) -> str:
        """How a split came to be, where that is worth a word."""
        return ""

    def split(self, name: str) -> Split:
        """Raises ValueError for an empty split or a label outside the spec."""
        return MemorySplit(*checked(*self.read(name), name, self.spec()), self.whence(name))

    def split_summary(self, split: Split) -> str:
        """How many images there are of each class."""
        summary = getattr(split, "summary", "")
        assert split.labels is not None
        counts = split.labels.bincount(minlength=self.spec().num_classes).tolist()
        return f"{f'{summary}: ' if summary else ''}{_images(len(split))}; {_by_class(self.spec().class_names, counts)}"

    def supplied(self) -> Mapping[str, Any]:
        return {"input_shape": self.spec().input_shape, "dense": self.task.dense}

    def example(self, body: Backbone) -> Features:
        """[1, C, H, W] zeros"""
        channels, height, width = self.spec().input_shape
        return torch.zeros(1, body.in_channels or channels, height, width)

    def stream(self, split: Split, body: Backbone, batches: Batches, place: Placement) -> ImageStream:
        augment = self.augment if batches.training else None
        return ImageStream(split, self.spec(), self.sampled(batches), place, body.in_channels, augment)

    def eval_views(
        self, split: Split, body: Backbone, batches: Batches, place: Placement, count: int = 1
    ) -> Iterator[list[Batch]]:
        """The first view is the image itself, the others are as training augments it."""
        self.check_views(count)
        stream = self.stream(split, body, batches, place)
        if count == 1:
            return ([batch] for batch in stream.eval_batches())
        augmented = ImageStream(split, self.spec(), batches, place, body.in_channels, self.augment)
        return stream.with_views(augmented, count)

    def check_views(self, count: int) -> None:
        if count > 1 and self.task.dense:
            raise ValueError(f"predict.views={count}: masks are made of one view")
        if count > 1 and not self.augment.per_sample:
            raise ValueError(
                f"predict.views={count}: training does not augment, so that there is one view of each image; "
                "dataset.augment.flip=true would make others"
            )

    def show_batch(self, batch: Batch) -> Mapping[str, Tensor]:
        spec = self.spec()
        images = pictures.visible(batch.inputs[:32], spec.mean, spec.std)
        if self.task.dense:
            return {"batch": pictures.side_by_side(images[:8], [batch.targets[:8]], ("image", "mask"))}
        return {"batch": pictures.grid(images)}


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _by_class(names: Sequence[str], counts: Sequence[int]) -> str:
    if len(names) <= LISTED:
        return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    return f"{len(names)} classes of {min(counts):,} to {_images(max(counts))}"


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Raises ValueError where they cannot be those of pixels of so many channels; None is measured."""
    for key, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        if len(values) != channels:
            raise ValueError(f"dataset.{key}={list(values)}: {len(values)} numbers for images of {channels} channels")
        if not all(math.isfinite(value) and (value > 0 or key == "mean") for value in values):
            raise ValueError(f"dataset.{key}={list(values)}: finite numbers{' above 0' if key == 'std' else ''}")


def checked(images: Tensor, labels: Tensor, name: str, spec: ImageSpec) -> tuple[Tensor, Tensor]:
    if not len(labels):
        raise ValueError(f"dataset: the {name} split is empty")
    check_statistics(spec.mean, spec.std, spec.input_shape[0])
    if labels.is_floating_point():  # numbers, or sets of labels
        return images, labels
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
