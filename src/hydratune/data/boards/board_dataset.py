"""Positions of a game, and what is known of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydratune.core.batching import mapped
from hydratune.core.task import Task
from hydratune.core.types import Backbone, Batch, BoardSpec, Features, PositionTargets, Summary
from hydratune.data.dataset import Dataset
from hydratune.data.stream import Batches, Placement, Stream
from hydratune.games.game import Game, States
from hydratune.record import boards

SHOWN = 8  # boards of a batch


@dataclass(frozen=True, eq=False)
class Positions:
    """N positions. kinds: [N] which of `kind_names` each is of, -1: none."""

    states: States
    inputs: Tensor  # [N, C, H, W] uint8
    targets: PositionTargets  # of [N, ...]
    kinds: Tensor
    kind_names: Sequence[str] = ()
    summary: str = ""
    identity: str = ""  # which positions they are, where the configuration does not say it

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labels(self) -> None:
        return None


class BoardDataset(Dataset):
    """symmetries: whether training shows a position turned and mirrored as well, a view an epoch."""

    def __init__(self, task: Task, game: Game, symmetries: bool = True) -> None:
        super().__init__(task)
        self.game, self.symmetries = game, symmetries

    @abstractmethod
    def split(self, name: str) -> Positions: ...

    def spec(self) -> BoardSpec:
        return BoardSpec(self.game.name, self.game.planes, tuple(self.game.action_names))

    def supplied(self) -> Mapping[str, Any]:
        return {"input_shape": self.game.planes}

    def example(self, body: Backbone) -> Features:
        return torch.zeros(1, *self.game.planes)

    def example_inputs(self, count: int) -> Mapping[str, Tensor]:
        states = np.repeat(self.game.start()[None], count, 0)
        return {"inputs": torch.from_numpy(self.game.inputs(states)).float()}

    def stream(self, split: Positions, body: Backbone, batches: Batches, place: Placement) -> BoardStream:
        return BoardStream(split, self.game, batches, place, self.symmetries and batches.training)

    def show_batch(self, batch: Batch) -> Mapping[str, Summary]:
        policy = batch.targets.policy[:SHOWN].cpu()
        value = batch.targets.value[:SHOWN].cpu()
        return {"batch": boards.drawn(batch.inputs[:SHOWN].cpu(), policy, value @ OUTCOMES, self.spec().class_names)}

    def split_summary(self, split: Any) -> str:
        return str(split.summary)


OUTCOMES = torch.tensor([-1.0, 0.0, 1.0])


class BoardStream(Stream):
    """Epoch e shows sample i by symmetry (i + e) modulo their number: after so many epochs it has been seen in all."""

    unit = "positions"

    def __init__(self, split: Positions, game: Game, batches: Batches, place: Placement, symmetries: bool) -> None:
        super().__init__(split, batches, place)
        self.game = game
        found = game.symmetries() if symmetries else ()
        every = torch.arange(game.planes[1] * game.planes[2])
        cells = [every, *(torch.from_numpy(s.cells) for s in found)]
        moves = [torch.arange(game.num_actions), *(torch.from_numpy(s.actions) for s in found)]
        self._cells, self._moves = torch.stack(cells).to(self.device), torch.stack(moves).to(self.device)
        self.views = self._count = len(cells)
        self.form = f"{game.name}, {game.planes[0]} planes, {self.views} views {split.identity}"
        self._inputs = split.inputs.to(self.device)
        self._targets: PositionTargets = mapped(lambda t: t.to(self.device), split.targets)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        for epoch, every in self._epochs(first_step, last_step):
            view = epoch % self._count
            for ids in map(self._own, every):
                yield Batch(self.seen(ids, view), self.targets(ids, view), ids)

    def eval_batches(self) -> Iterator[Batch]:
        return (Batch(self.seen(ids), self.known(ids), ids.to(self.device)) for ids in self._eval_ids())

    def unique_inputs(self, size: int) -> Iterator[Tensor]:
        every = torch.arange(len(self.split), device=self.device)
        for view in range(self._count):
            for ids in every.tensor_split(max(len(every) // size, 1)):
                yield self.seen(ids, view)

    def targets(self, ids: Tensor, view: int = 0) -> PositionTargets:
        return self.known(ids, view if self.training else None)

    def _symmetry(self, ids: Tensor, view: int | None) -> Tensor | None:
        return None if view is None or self._count == 1 else (ids + view) % self._count

    def seen(self, ids: Tensor, view: int | None = None) -> Tensor:
        """[B, C, H, W] float"""
        planes, which = self._inputs[ids].float(), self._symmetry(ids, view)
        if which is not None:
            cells = self._cells[which].unsqueeze(1).expand(-1, planes.shape[1], -1)
            planes = planes.flatten(2).gather(2, cells).view_as(planes)
        return planes.contiguous(memory_format=self.memory_format)

    def known(self, ids: Tensor, view: int | None = None) -> PositionTargets:
        policy, value, moves = (t[ids] for t in self._targets)
        which = self._symmetry(ids, view)
        if which is not None:
            policy, moves = policy.gather(1, self._moves[which]), moves.gather(1, self._moves[which])
        return PositionTargets(policy, value, moves)

    def shown(self, ids: Sequence[int], captions: Sequence[str]) -> Tensor:
        at = torch.tensor(ids, device=self.device)
        policy, value = self._targets.policy[at].cpu(), self._targets.value[at].cpu() @ OUTCOMES
        return boards.drawn(self._inputs[at].cpu(), policy, value, self.game.action_names, captions)
