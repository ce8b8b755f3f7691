"""Batches of images. Augmentation is f(seed, epoch, sample), mixing f(seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hydratune.core.batching import to_device
from hydratune.core.objects import Objects
from hydratune.core.types import Batch, Features, ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.stream import Batches, Placement, Stream
from hydratune.record import pictures

IGNORED = 255  # in masks


class Split(Protocol):
    """Samples that can be had by number. `labels`: [N] class numbers, [N, K] float, or None beside masks and boxes."""

    @property
    def labels(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def read(self, ids: Tensor) -> Tensor:
        """[B] -> [B, C, H, W] uint8, on the split's device."""
        ...


class MaskedSplit(Split, Protocol):
    """Images with a class number for every pixel."""

    def read_masks(self, ids: Tensor) -> Tensor:
        """[B] -> [B, H, W] uint8, 255: ignored."""
        ...


class BoxedSplit(Split, Protocol):
    """Images with boxes."""

    def read_objects(self, ids: Tensor) -> Objects: ...


class MemorySplit:
    """Images as one uint8 tensor [N, C, H, W]. summary: how the split came to be."""

    def __init__(self, images: Tensor, labels: Tensor, summary: str = "") -> None:
        assert images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(labels)
        self.images, self.labels, self.summary = images, labels, summary

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, ids: Tensor) -> Tensor:
        return self.images[ids]

    def with_labels(self, labels: Tensor) -> MemorySplit:
        return MemorySplit(self.images, labels, self.summary)


class ImageStream(Stream):
    """Images as the network sees them."""

    anew = "augmentation is random; dataset.augment.views=4 would fix four views of each image"

    def __init__(
        self,
        split: Split,
        spec: ImageSpec,
        batches: Batches,
        place: Placement,
        in_channels: int | None = 3,
        augment: Augment | None = None,
    ) -> None:
        """in_channels: what the network wants; a grey image is repeated to it. augment: None for evaluation."""
        super().__init__(split, batches, place)
        self.spec, device = spec, place.device
        self.augment = augment or Augment()
        self.views, self.random = self.augment.distinct, self.augment.per_sample
        channels = spec.input_shape[0]
        if in_channels not in (None, channels) and channels != 1:
            raise ValueError(f"the network wants {in_channels} channels, the data has {channels}")
        self.channels = in_channels or channels
        self.form = f"{self.channels} channels"
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        # (pixel / 255 - mean) / std as one multiplication and one addition
        self._scale = (1 / (255 * std)).view(1, -1, 1, 1).to(device)
        self._shift = (-mean / std).view(1, -1, 1, 1).to(device)
        self._mean, self._std = mean.view(1, -1, 1, 1).to(device), std.view(1, -1, 1, 1).to(device)
        self._labels = None if split.labels is None else split.labels.to(device)
        self._padded = self.augment.pad(split.images.to(device)) if isinstance(split, MemorySplit) else None

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The global batches of steps [first_step, last_step)."""
        step = first_step
        mixes = self.augment.mixes
        for epoch, every in self._epochs(first_step, last_step):
            table = self._table(epoch)
            ids = [self._taken(these) for these in every]
            for these, images in zip(ids, self._read(ids), strict=True):
                draws = None if table is None else table[self._taken(self._in_epoch(step)) if self._anew else these]
                inputs, targets = self._prepare(images, these, draws), self._targets(these, draws)
                inputs, targets = self.augment.mix(inputs, targets, self.spec.num_classes, self.seed, step)
                parts = (self._own(t) for t in (inputs, targets, these)) if mixes else (inputs, targets, these)
                yield Batch(*parts)
                step += 1

    def targets(self, ids: Tensor, view: int = 0) -> Features:
        """Masks and boxes follow the geometry of that view."""
        table = None if self._labels is not None else self._table(view)
        return self._targets(ids, None if table is None else table[ids])

    def _targets(self, ids: Tensor, draws: Tensor | None) -> Features:
        """draws: what was done to these images; None: nothing."""
        if self._labels is not None:
            return self._labels[ids]
        height, width = self.spec.input_shape[1:]
        if hasattr(self.split, "read_objects"):
            objects = to_device(self.split.read_objects(ids.cpu()), self.device)
            return objects if draws is None else self.augment.objects(objects, draws, (height, width))
        masks = self.split.read_masks(ids.cpu()).to(self.device)
        return masks if draws is None else self.augment.masks(masks, draws, IGNORED)

    def unique_inputs(self, size: int) -> Iterator[Tensor]:
        """`size` to twice as many at a time."""
        assert self.views is not None
        count = len(self.split)
        every = torch.arange(count, device=self.device)
        # The last part is not left to be a small one: a batch of one sample may be computed in other ways.
        ids = list(every.tensor_split(max(count // size, 1)))
        for view in range(self.views):
            table = self._table(view)
            for these, images in zip(ids, self._read(ids), strict=True):
                yield self._prepare(images, these, None if table is None else table[these])

    def _taken(self, rows: Tensor) -> Tensor:
        """This process's part of a global batch; all of one that is mixed, and divided after that: a partner may be
        another process's sample.
        """
        return rows if self.augment.mixes else self._own(rows)

    @property
    def _anew(self) -> bool:
        """Whether a sample that an epoch draws again is augmented anew. Fixed views are the same in all of an epoch."""
        return self.balanced and self.augment.views is None

    def _in_epoch(self, step: int) -> Tensor:
        """[B] places of a batch's samples in the order of its epoch"""
        first = step % self.steps_per_epoch * self.batch_size
        return torch.arange(first, first + self.batch_size, device=self.device)

    def _table(self, epoch: int) -> Tensor | None:
        if not self.augment.per_sample:
            return None
        return self.augment.table(self.seed, epoch, len(self.split)).to(self.device)

    def eval_batches(self) -> Iterator[Batch]:
        """In order."""
        assert not self.random
        ids = self._eval_ids()
        for these, images in zip(ids, self._read(ids), strict=True):
            yield Batch(self._prepare(images, these, None), self._targets(these, None), these.to(self.device))

    def with_views(self, augmented: ImageStream, count: int) -> Iterator[list[Batch]]:
        """The same, each batch with `count` - 1 further views of it; read once for all."""
        tables = [augmented._table(view) for view in range(1, count)]
        ids = self._eval_ids()
        for these, images in zip(ids, self._read(ids), strict=True):
            targets, where = self._targets(these, None), these.to(self.device)
            inputs = [self._prepare(images, these, None)]
            inputs += [augmented._prepare(images, these, table[these]) for table in tables if table is not None]
            yield [Batch(own, targets, where) for own in inputs]

    def shown(self, ids: Sequence[int], captions: Sequence[str]) -> Tensor:
        return pictures.mistakes(self.visible(torch.tensor(ids, device=self.device)), captions)

    def visible(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 3, H, W] uint8, as somebody would see them."""
        return pictures.visible(self.images(ids), self.spec.mean, self.spec.std)

    def images(self, ids: Tensor) -> Tensor:
        """[B] -> [B, C, H, W] float, normalised and not augmented."""
        pixels = self.split.read(ids.cpu()).to(self.device)
        return self._normalised(pixels)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self._scale).add_(self._shift)

    def _read(self, ids: list[Tensor]) -> Iterator[Tensor | None]:
        """Images per batch, read ahead where that costs time; None where they lie in memory."""
        if self._padded is not None:
            return iter([None] * len(ids))
        read_ahead = getattr(self.split, "read_ahead", None)
        if read_ahead is not None:
            return read_ahead([these.cpu() for these in ids])
        return (self.split.read(these.cpu()) for these in ids)

    def _prepare(self, images: Tensor | None, ids: Tensor, draws: Tensor | None) -> Tensor:
        """-> [B, C, H, W] float, normalised."""
        if images is None:
            assert self._padded is not None
            pixels = self._padded[ids] if draws is None else self.augment.pixels(self._padded, ids, draws)
        else:
            pixels = images.to(self.device)
            if draws is not None:
                pixels = self.augment.pixels(self.augment.pad(pixels), None, draws)
        if draws is not None and self.augment.in_floats:
            values = self.augment.values(pixels.float().div_(255), draws)
            values = (values - self._mean) / self._std
        else:
            values = self._normalised(pixels)
        if draws is not None:
            values = self.augment.blank(values, draws)
        if values.shape[1] != self.channels:
            values = values.expand(-1, self.channels, -1, -1)
        return values.contiguous(memory_format=self.memory_format)
