"""Positions of a game to be looked at, of which nothing is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydratune.core.types import MOVE_FORBIDDEN, MOVE_UNKNOWN, BoardSpec, PositionTargets
from hydratune.data.boards.board_dataset import BoardDataset, Positions
from hydratune.data.inputs import Item


@dataclass(frozen=True, eq=False)
class GivenPositions(Positions):
    faults: Mapping[int, str] = field(default_factory=dict)


class BoardInputs(BoardDataset):
    chunk = 4096

    def __init__(self, like: BoardDataset, spec: BoardSpec) -> None:
        """Raises ValueError where the network was trained on another game."""
        super().__init__(like.task, like.game, symmetries=False)
        own = self.spec()
        if (own.game, own.input_shape) != (spec.game, spec.input_shape):
            raise ValueError(
                f"dataset.game: {own.game} with planes of {own.input_shape}, and the network was trained on "
                f"{spec.game} with {spec.input_shape}"
            )

    def split(self, name: str) -> Positions:
        raise ValueError(f"inputs: have no {name} split")

    def items(self, given: Sequence[Any]) -> list[Item]:
        """Files with a position a line (what follows a space is left out), or positions as text."""
        found = []
        for one in given:
            if isinstance(one, Path):
                if not one.is_file():
                    raise ValueError(f"inputs={one}: a file with a position a line is wanted")
                lines = one.read_text().splitlines()
                found += [Item(line.split()[0], {"position": line.split()[0]}) for line in lines if line.strip()]
            elif isinstance(one, str):
                found.append(Item(one, {"position": one}))
            else:
                raise ValueError(f"inputs: a {type(one).__name__} is no position; text is, of m, o and .")
        return found

    def split_of(self, items: Sequence[Item]) -> GivenPositions:
        faults, states = {}, np.repeat(self.game.start()[None], len(items), 0)
        for number, item in enumerate(items):
            try:
                states[number] = self.game.read([item.content])[0]
            except ValueError as error:
                faults[number] = str(error)
                continue
            if not np.isnan(self.game.result(states[number][None])[0]):
                faults[number], states[number] = "the game has ended", self.game.start()
        legal = torch.from_numpy(self.game.legal(states))
        targets = PositionTargets(
            torch.zeros(legal.shape),
            torch.tensor([[0.0, 1.0, 0.0]]).repeat(len(items), 1),
            torch.where(legal, MOVE_UNKNOWN, MOVE_FORBIDDEN).to(torch.int8),
        )
        none = torch.full((len(items),), -1)
        return GivenPositions(states, torch.from_numpy(self.game.inputs(states)), targets, none, faults=faults)
