"""Batches from a position: whatever is random in them is f(seed, epoch), f(seed, epoch, sample) or f(seed, step)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hydratune.core.seeding import derive_seed
from hydratune.core.types import Batch, Features, Summary
from hydratune.data.sampling import class_balanced, drawing


@dataclass(frozen=True)
class Batches:
    """Which batches: size: samples of a global batch; training: whether they are augmented, and what else is random;
    balanced: whether an epoch draws as many samples of each class.
    """

    size: int
    seed: int = 0
    training: bool = False
    balanced: bool = False


@dataclass(frozen=True)
class Placement:
    """Where batches lie. rank, world: of every global batch this process gets its part; which samples those are depends
    on neither.
    """

    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format
    rank: int = 0
    world: int = 1


class Rows(NamedTuple):
    """Samples of one batch in a table of their features."""

    ids: Tensor  # [B] sample numbers
    at: Tensor  # [B] rows of the table
    view: int  # which view of the samples they are


class Stream(ABC):
    """Endless training batches, resumable by their number alone; and one pass over a split for evaluation.

    The last, smaller batch of an epoch is left out in training (another order brings its samples back), unless it is
    the only one. In evaluation every sample comes once.

    `views`: how many versions of a sample training sees, None for no end of them; `random`: whether a version depends
    on the seed; `anew`: why there may be no end of them. `unit`: what its speed is counted in, of which there are
    `units_per_sample`. `form`: words that tell it from another stream over the same samples.
    """

    unit = "images"
    units_per_sample = 1.0
    views: int | None = 1
    random = False
    anew = ""
    form = ""

    def __init__(self, split: Any, batches: Batches, place: Placement) -> None:
        self.split, self.seed, self.device, self.training = split, batches.seed, place.device, batches.training
        self.balanced = batches.balanced
        self.numbers = place.device  # where sample numbers lie
        self.memory_format, self.rank, self.world = place.memory_format, place.rank, place.world
        self.batch_size = min(batches.size, len(split))
        if self.batch_size < self.world:
            raise ValueError(
                f"batch_size={self.batch_size}: fewer samples than the {self.world} processes that share them"
            )
        self.steps_per_epoch = len(split) // self.batch_size

    # ---- what a kind of data says

    @abstractmethod
    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The global batches of steps [first_step, last_step)."""

    @abstractmethod
    def eval_batches(self) -> Iterator[Batch]:
        """Every sample once; for a stream that changes none of them."""

    @abstractmethod
    def unique_inputs(self, size: int) -> Iterator[Features]:
        """Inputs of every sample in the order of `rows`, of one view of it after the other, about `size` at a time."""

    @abstractmethod
    def targets(self, ids: Tensor, view: int) -> Features:
        """What these samples are labelled with, as one of their views has it: masks follow their augmented image."""

    @abstractmethod
    def shown(self, ids: Sequence[int], captions: Sequence[str]) -> Summary:
        """These samples for somebody to look at."""

    def order(self, epoch: int) -> Tensor:
        """[N] sample numbers in the order of an epoch: all of them, or as many of each class."""
        return self._drawn(self._order_generator(epoch))

    # ---- what follows from that

    @property
    def drawing(self) -> str:
        """What an epoch draws, where that is not each sample once."""
        return drawing(self.split.labels) if self.balanced else ""

    def _order_generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))

    def _drawn(self, g: torch.Generator) -> Tensor:
        """[N] sample numbers in random order"""
        return class_balanced(self.split.labels, g) if self.balanced else torch.randperm(len(self.split), generator=g)

    def rows(self, first_step: int, last_step: int) -> Iterator[Rows]:
        """Where a table made in the order of `unique_inputs` has the samples of the same batches."""
        for epoch, ids in self._epochs(first_step, last_step):
            view = epoch % (self.views or 1)
            start = view * len(self.split)
            yield from (Rows(these, start + self._row(these), view) for these in map(self._own, ids))

    def eval_rows(self) -> Iterator[Rows]:
        """The same of `eval_batches`."""
        yield from (Rows(ids, self._row(ids), 0) for ids in self._eval_ids())

    def labelled(self, inputs: Features, rows: Rows) -> Batch:
        """What a table holds of these samples, as a batch."""
        return Batch(inputs, self.targets(rows.ids, rows.view), rows.ids.to(self.device))

    def row_lengths(self) -> Tensor | None:
        """[views * N] elements of each row of a table, where samples are of several lengths."""
        return None

    def _row(self, ids: Tensor) -> Tensor:
        """Where `unique_inputs` has these samples."""
        return ids

    def _own(self, rows: Tensor) -> Tensor:
        """This process's part of a global batch."""
        return rows.tensor_split(self.world)[self.rank] if self.world > 1 else rows

    def _epochs(self, first_step: int, last_step: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Per epoch the sample numbers of its batches, as far as they lie in [first_step, last_step)."""
        step = first_step
        while step < last_step:
            epoch, index = divmod(step, self.steps_per_epoch)
            order = self.order(epoch).to(self.numbers)
            stop = min(self.steps_per_epoch, index + last_step - step)
            yield epoch, [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(index, stop)]
            step += stop - index

    def _eval_ids(self) -> list[Tensor]:
        """The sample numbers of each batch of `eval_batches`."""
        every = torch.arange(len(self.split), device=self.numbers)
        return [self._own(ids) for ids in every.split(self.batch_size)]
