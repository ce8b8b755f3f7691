"""Batches from a position. Order is f(seed, epoch), augmentation f(seed, epoch, sample), mixing f(seed, step)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hydratune.data.augment import Augment
from hydratune.data.dataset import MemorySplit, Split
from hydratune.randomness import derive_seed
from hydratune.types import Batch, DataSpec


class Stream:
    """Endless training batches, resumable by their number alone; and one pass over a split for evaluation.

    The last, smaller batch of an epoch is left out in training (another order brings its samples back), unless it is
    the only one. In evaluation every sample comes once.
    """

    def __init__(
        self,
        split: Split,
        spec: DataSpec,
        batch_size: int,
        device: torch.device,
        in_channels: int | None = 3,
        augment: Augment | None = None,
        seed: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """in_channels: what the network wants; a grey image is repeated to it. augment: None for evaluation.

        rank, world: of every global batch this process gets its part; which samples those are depends on neither.
        """
        self.split, self.spec, self.seed, self.device = split, spec, seed, device
        self.rank, self.world = rank, world
        self.memory_format = memory_format
        self.batch_size = min(batch_size, len(split))
        self.augment = augment or Augment()
        if self.batch_size < world:
            raise ValueError(f"batch_size={self.batch_size}: fewer samples than the {world} processes that share them")
        self.steps_per_epoch = len(split) // self.batch_size
        channels = spec.input_shape[0]
        if in_channels not in (None, channels) and channels != 1:
            raise ValueError(f"the network wants {in_channels} channels, the data has {channels}")
        self.channels = in_channels or channels
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        # (pixel / 255 - mean) / std as one multiplication and one addition
        self._scale = (1 / (255 * std)).view(1, -1, 1, 1).to(device)
        self._shift = (-mean / std).view(1, -1, 1, 1).to(device)
        self._mean, self._std = mean.view(1, -1, 1, 1).to(device), std.view(1, -1, 1, 1).to(device)
        self._labels = split.labels.to(device)
        self._padded = self.augment.pad(split.images.to(device)) if isinstance(split, MemorySplit) else None

    def order(self, epoch: int) -> Tensor:
        """[N] sample numbers in the order of an epoch."""
        g = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.split), generator=g)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The global batches of steps [first_step, last_step)."""
        step = first_step
        mixes = bool(self.augment.mixup or self.augment.cutmix)
        for epoch, every in self._epochs(first_step, last_step):
            table = self._table(epoch)
            ids = every if mixes else [self._own(these) for these in every]
            for these, images in zip(ids, self._read(ids), strict=True):
                inputs = self._prepare(images, these, None if table is None else table[these])
                inputs, targets = self.augment.mix(inputs, self._labels[these], self.spec.num_classes, self.seed, step)
                # a partner may be another rank's sample: what is mixed is divided after that
                parts = (self._own(t) for t in (inputs, targets, these)) if mixes else (inputs, targets, these)
                yield Batch(*parts)
                step += 1

    def rows(self, first_step: int, last_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(sample numbers, their rows in a table made in the order of `distinct`) of the same batches."""
        for epoch, ids in self._epochs(first_step, last_step):
            start = (epoch % (self.augment.distinct or 1)) * len(self.split)
            yield from ((these, start + these) for these in map(self._own, ids))

    def _own(self, rows: Tensor) -> Tensor:
        """This process's part of a global batch."""
        return rows.tensor_split(self.world)[self.rank] if self.world > 1 else rows

    def labelled(self, inputs: Tensor, ids: Tensor) -> Batch:
        """What a table holds of these samples, as a batch."""
        return Batch(inputs, self._labels[ids], ids)

    def distinct(self, size: int) -> Iterator[Tensor]:
        """Inputs of every sample in order, of one view of it after the other, `size` to twice as many at a time."""
        assert self.augment.distinct is not None
        count = len(self.split)
        every = torch.arange(count, device=self.device)
        # The last part is not left to be a small one: a batch of one sample may be computed in other ways.
        ids = list(every.tensor_split(max(count // size, 1)))
        for view in range(self.augment.distinct):
            table = self._table(view)
            for these, images in zip(ids, self._read(ids), strict=True):
                yield self._prepare(images, these, None if table is None else table[these])

    def _epochs(self, first_step: int, last_step: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Per epoch the sample numbers of its batches, as far as they lie in [first_step, last_step)."""
        step = first_step
        while step < last_step:
            epoch, index = divmod(step, self.steps_per_epoch)
            order = self.order(epoch).to(self.device)
            stop = min(self.steps_per_epoch, index + last_step - step)
            yield epoch, [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(index, stop)]
            step += stop - index

    def _table(self, epoch: int) -> Tensor | None:
        if not self.augment.per_sample:
            return None
        return self.augment.table(self.seed, epoch, len(self.split)).to(self.device)

    def once(self) -> Iterator[Batch]:
        """Every sample once, in order; for a stream without augmentation."""
        assert not self.augment.per_sample
        ids = self._batches_once()
        for these, images in zip(ids, self._read(ids), strict=True):
            yield Batch(self._prepare(images, these, None), self._labels[these], these)

    def rows_once(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(sample numbers, their rows in a table) of the same batches."""
        yield from ((ids, ids) for ids in self._batches_once())

    def _batches_once(self) -> list[Tensor]:
        every = torch.arange(len(self.split), device=self.device).split(self.batch_size)
        return [self._own(ids) for ids in every]

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
        if draws is not None and (self.augment.resized_crop or self.augment.jitter or self.augment.trivial):
            values = self.augment.values(pixels.float().div_(255), draws)
            values = (values - self._mean) / self._std
        else:
            values = self._normalised(pixels)
        if draws is not None:
            values = self.augment.blank(values, draws)
        if values.shape[1] != self.channels:
            values = values.expand(-1, self.channels, -1, -1)
        return values.contiguous(memory_format=self.memory_format)
