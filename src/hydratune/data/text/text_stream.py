"""Batches of text: sequences of about one length together, filled up to the longest of their batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hydratune.core.markdown import markdown_table
from hydratune.core.ragged import side_by_side, width_of
from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.core.types import Batch, Padded, TextSpec
from hydratune.data.stream import Batches, Placement, Stream
from hydratune.data.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextSplit:
    """Token numbers one after the other, perhaps in a mapped file, and which stretch of them each sample is.

    labels: [N], or one after the other like the tokens where it is `per_token`, -100 where nothing is asked; with
    `following` each token's is the one after it. summary: what whoever reads the numbers should know of it.
    """

    tokens: Tensor  # [S] int32
    starts: Tensor  # [N]
    lengths: Tensor  # [N]
    labels: Tensor | None = None
    per_token: bool = False
    following: bool = False
    summary: str = ""

    def __len__(self) -> int:
        return len(self.starts)

    def with_labels(self, labels: Tensor) -> TextSplit:
        return replace(self, labels=labels)

    def summarised(self, *sentences: str) -> TextSplit:
        return replace(self, summary="; ".join(filter(None, sentences)))


class Noise:
    """Uniform numbers that are a function of (seed, epoch, sample, position), whatever else is in the batch."""

    def __init__(self, seed: int, epoch: int, ids: Tensor, width: int) -> None:
        self._key, self._ids, self._width = (seed, epoch), ids, width

    @cached_property
    def _counter(self) -> Tensor:
        """[B, T]; made where a task asks for noise at all."""
        return (self._ids.unsqueeze(1) << 20) + torch.arange(self._width, device=self._ids.device)

    def uniform(self, name: str) -> Tensor:
        """[B, T] in [0, 1), others for every name. SplitMix64's finalizer (Steele et al. 2014) of a counter."""
        x = self._counter + derive_seed(*self._key, name)
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
            x = (x ^ (x >> shift & (1 << (64 - shift)) - 1)) * factor
        return (x & 0xFFFFFF).float() / 2**24


class TextStream(Stream):
    """What is asked of each sample the task says itself: `make_inputs(values, lengths, labels, noise, spec)`."""

    unit = "tokens"
    anew = "other words are hidden in every epoch"

    def __init__(
        self, split: TextSplit, spec: TextSpec, task: Task, tokenizer: Tokenizer, batches: Batches, place: Placement,
        bucket: int = 50,
    ) -> None:  # fmt: skip
        """bucket: batches' worth of shuffled samples that are sorted by length; 1: batches of a plain shuffle."""
        super().__init__(split, batches, place)
        self.spec, self.task, self.tokenizer, self.bucket = spec, task, tokenizer, bucket
        device = place.device
        self.random = task.random
        self.views = None if task.random else 1
        self.form = f"{tokenizer.digest[:16]} {spec.max_length} {task.question}"
        self.units_per_sample = float(split.lengths.double().mean())
        self.numbers = torch.device("cpu")  # how wide a batch is must be known here, without asking the device
        self._tokens = split.tokens.to(device)
        self._labels = None if split.labels is None else split.labels.to(device)
        if split.following:  # no second copy of them on the device
            self._labels = self._tokens[1:]
        self._starts, self._lengths = split.starts.to(device), split.lengths.to(device)
        self._by_length = split.lengths.argsort(stable=True)
        self._rank_of = torch.empty_like(self._by_length)
        self._rank_of[self._by_length] = torch.arange(len(split))

    def order(self, epoch: int) -> Tensor:
        """[steps * batch size] sample numbers; batches come in any order, what is within one is of about one length."""
        g = self._order_generator(epoch)
        order = self._drawn(g)[: self.steps_per_epoch * self.batch_size]
        if self.bucket > 1:
            chunk = torch.arange(len(order)) // (self.batch_size * self.bucket)
            key = chunk * (self.spec.max_length + 1) + self.split.lengths[order]
            order = order[key.argsort(stable=True)].view(self.steps_per_epoch, self.batch_size)
            order = order[torch.randperm(self.steps_per_epoch, generator=g)].flatten()
        return order

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        for epoch, every in self._epochs(first_step, last_step):
            for ids in every:
                yield self._batch(self._own(ids), epoch if self.training else 0)

    def eval_batches(self) -> Iterator[Batch]:
        """In order of length. What is random comes out alike in every evaluation, and in all trials."""
        for ids in self._eval_ids():
            yield self._batch(ids, 0)

    def unique_inputs(self, size: int) -> Iterator[Padded]:
        assert not self.random
        for ids in self._by_length.tensor_split(max(len(self.split) // size, 1)):
            yield self._batch(ids, 0).inputs

    def row_lengths(self) -> Tensor:
        return self.split.lengths[self._by_length]

    def targets(self, ids: Tensor, view: int = 0) -> Tensor:
        """A task that is not random asks for the labels as they are."""
        assert not self.random
        given = self._given(ids.to(self.device), width_of(self.split.lengths[ids]))
        assert given is not None
        return given

    def texts(self, ids: Sequence[int]) -> list[str]:
        """As they were tokenized, special tokens left out."""
        rows = [(int(self.split.starts[i]), int(self.split.lengths[i])) for i in ids]
        return [self.tokenizer.decode(self.split.tokens[a : a + n].tolist()) for a, n in rows]

    def shown(self, ids: Sequence[int], captions: Sequence[str]) -> str:
        shown = [" ".join(c.split()) for c in captions]
        return markdown_table(("", "text"), list(zip(shown, map(as_cell, self.texts(ids)), strict=True)))

    def _row(self, ids: Tensor) -> Tensor:
        return self._rank_of[ids]

    def _own(self, rows: Tensor) -> Tensor:
        return rows[self.rank :: self.world]  # a batch in order of length: everybody gets short and long ones

    def _eval_ids(self) -> list[Tensor]:
        # None of them so small that a process would get nothing of it
        return [self._own(ids) for ids in self._by_length.tensor_split(max(len(self.split) // self.batch_size, 1))]

    def _batch(self, ids: Tensor, epoch: int) -> Batch:
        """ids: [B] on the CPU."""
        width = width_of(self.split.lengths[ids])
        ids = ids.to(self.device)
        starts, lengths = self._starts[ids], self._lengths[ids]
        values = side_by_side(self._tokens, starts, lengths, width, self.tokenizer.filler).long()
        noise = Noise(self.seed if self.training else 0, epoch, ids, width)
        values, asked, targets = self.task.make_inputs(values, lengths, self._given(ids, width), noise, self.spec)
        return Batch(Padded(values, lengths, asked), targets, ids)

    def _given(self, ids: Tensor, width: int) -> Tensor | None:
        """The labels of these samples: [B], or [B, width] of their tokens."""
        if self._labels is None:
            return None
        if not (self.split.per_token or self.split.following):
            return self._labels[ids]
        return side_by_side(self._labels, self._starts[ids], self._lengths[ids], width, -100).long()


def as_cell(text: str, longest: int = 300) -> str:
    """Its beginning."""
    return text if len(text) <= longest else f"{text[:longest]} ..."
