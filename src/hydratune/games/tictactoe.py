"""Tic-tac-toe: nine cells, three in a row win."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hydratune.games.game import Actions, Game, States, Symmetry, bits, square_symmetries, words_of

U = np.uint64
CELLS = np.arange(9, dtype=U)
LINES = np.array([0b111, 0b111000, 0b111000000, 0b1001001, 0b10010010, 0b100100100, 0b100010001, 0b1010100], U)


class TicTacToe(Game):
    name = "tictactoe"
    num_actions, words, longest, planes = 9, 2, 9, (2, 3, 3)

    def start(self) -> States:
        return np.zeros(2, U)

    def legal(self, states: States) -> NDArray[np.bool_]:
        return bits(states[:, 0] | states[:, 1], CELLS) == 0

    def play(self, states: States, actions: Actions) -> States:
        return np.stack([states[:, 1], states[:, 0] | (U(1) << actions.astype(U))], 1)

    def result(self, states: States) -> NDArray[np.float32]:
        result = np.full(len(states), np.nan, np.float32)
        result[(states[:, 0] | states[:, 1]) == U(0b111111111)] = 0
        result[((states[:, 1, None] & LINES) == LINES).any(1)] = -1
        return result

    def inputs(self, states: States) -> NDArray[np.uint8]:
        return bits(states.reshape(-1), CELLS).reshape(len(states), *self.planes)

    def from_stones(self, own: NDArray[np.bool_], other: NDArray[np.bool_]) -> States:
        return np.stack([words_of(own, CELLS), words_of(other, CELLS)], 1)

    def symmetries(self) -> Sequence[Symmetry]:
        return square_symmetries(3)

    def action_name(self, action: int) -> str:
        return str(action + 1)
