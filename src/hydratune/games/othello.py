"""Othello on a square board: a stone turns those of the other side that it encloses; more stones win."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hydratune.games.game import Actions, Game, States, Symmetry, bits, square_symmetries, words_of

U = np.uint64


class Othello(Game):
    """size: cells of a side, 4, 6 or 8. Who has no move passes, which is the last action; when neither has, it ends."""

    name = "othello"
    words = 2  # own stones, the other's

    def __init__(self, size: int = 6) -> None:
        if size not in (4, 6, 8):
            raise ValueError(f"game.size={size}: 4, 6 or 8")
        self.size, cells = size, size * size
        self.num_actions = cells + 1
        self.planes = (3, size, size)  # own stones, the other's, own moves
        self.longest = 2 * (cells - 4)  # a pass may follow each stone
        self._cells = np.arange(cells, dtype=U)
        columns = np.arange(cells) % size
        self._board = _word(np.ones(cells, bool))
        left, right = _word(columns > 0), _word(columns < size - 1)  # where a step to the left or right may come from
        self._steps = [
            (1, right), (-1, left), (size, self._board), (-size, self._board),
            (size + 1, right), (-size - 1, left), (size - 1, left), (-size + 1, right),
        ]  # fmt: skip

    def start(self) -> States:
        """Black is to move, as open_spiel has it: white on the diagonal from the upper left."""
        low, high = self.size // 2 - 1, self.size // 2
        black = (low * self.size + high, high * self.size + low)
        white = (low * self.size + low, high * self.size + high)
        return np.array([sum(1 << c for c in black), sum(1 << c for c in white)], U)

    def legal(self, states: States) -> NDArray[np.bool_]:
        placed = bits(self._moves(states[:, 0], states[:, 1]), self._cells) == 1
        return np.concatenate([placed, ~placed.any(1, keepdims=True)], 1)

    def play(self, states: States, actions: Actions) -> States:
        own, other = states[:, 0], states[:, 1]
        places = actions < self.num_actions - 1
        stone = np.where(places, U(1) << np.where(places, actions, 0).astype(U), U(0))
        turned = np.zeros_like(own)
        for step in self._steps:
            line = self._stepped(stone, step) & other
            for _ in range(self.size - 3):
                line |= self._stepped(line, step) & other
            closes = (self._stepped(line, step) & own) != 0
            turned |= np.where(closes, line, U(0))
        return np.stack([other & ~turned, own | turned | stone], 1)

    def result(self, states: States) -> NDArray[np.float32]:
        own, other = states[:, 0], states[:, 1]
        ended = (self._moves(own, other) | self._moves(other, own)) == 0
        lead = bits(own, self._cells).sum(1, dtype=np.int64) - bits(other, self._cells).sum(1, dtype=np.int64)
        return np.where(ended, np.sign(lead), np.nan).astype(np.float32)

    def inputs(self, states: States) -> NDArray[np.uint8]:
        words = np.concatenate([states, self._moves(states[:, 0], states[:, 1])[:, None]], 1)
        return bits(words.reshape(-1), self._cells).reshape(len(states), *self.planes)

    def from_stones(self, own: NDArray[np.bool_], other: NDArray[np.bool_]) -> States:
        return np.stack([words_of(own, self._cells), words_of(other, self._cells)], 1)

    def symmetries(self) -> Sequence[Symmetry]:
        """Of the rules; the first position has but half of them."""
        return square_symmetries(self.size, more=1)

    def heuristic(self, states: States) -> NDArray[np.float32]:
        """Corners, which are never turned, and moves to choose from; stones say little before the end."""
        own, other = states[:, 0], states[:, 1]
        corners = np.array([0, self.size - 1, self.num_actions - 1 - self.size, self.num_actions - 2], U)
        held = bits(own, corners).sum(1, dtype=np.float32) - bits(other, corners).sum(1, dtype=np.float32)
        mine, theirs = (
            bits(self._moves(*pair), self._cells).sum(1, dtype=np.float32) for pair in ((own, other), (other, own))
        )
        return (0.6 * held / 4 + 0.4 * (mine - theirs) / np.maximum(mine + theirs, 1)).astype(np.float32)

    def action_name(self, action: int) -> str:
        """a1 is the upper left."""
        return "pass" if action == self.num_actions - 1 else f"{chr(97 + action % self.size)}{action // self.size + 1}"

    def picture(self, state: States, own: str = "x", other: str = "o") -> str:
        rows = super().picture(state, own, other).splitlines()
        header = "  " + " ".join(chr(97 + c) for c in range(self.size))
        return "\n".join([header, *(f"{r} {row}" for r, row in enumerate(rows, 1))])

    def _moves(self, own: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """[B] the empty cells where a stone encloses some."""
        empty = self._board & ~(own | other)
        found = np.zeros_like(own)
        for step in self._steps:
            line = self._stepped(own, step) & other
            for _ in range(self.size - 3):
                line |= self._stepped(line, step) & other
            found |= self._stepped(line, step)
        return found & empty

    def _stepped(self, words: NDArray[np.uint64], step: tuple[int, np.uint64]) -> NDArray[np.uint64]:
        """All stones moved by a step, those that would leave the board dropped."""
        by, origin = step
        moved = (words & origin) << U(by) if by > 0 else (words & origin) >> U(-by)
        return moved & self._board


def _word(cells: NDArray[np.bool_]) -> np.uint64:
    return U(sum(1 << int(i) for i in np.flatnonzero(cells)))
