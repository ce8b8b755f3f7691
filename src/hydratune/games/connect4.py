"""Connect Four: seven columns of six cells, four in a row win."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hydratune.games.game import Actions, Game, States, Symmetry, bits, words_of

COLUMNS, ROWS = 7, 6
U = np.uint64
# Bit 7 * column + row, row 0 at the bottom; the seventh bit of a column is always empty, so that no line wraps around.
BOTTOM = U(sum(1 << 7 * c for c in range(COLUMNS)))
BOARD = U(int(BOTTOM) * 63)
TOPS = np.array([1 << (7 * c + ROWS - 1) for c in range(COLUMNS)], U)
FEET = np.array([1 << 7 * c for c in range(COLUMNS)], U)
CELLS = np.array([7 * c + r for r in reversed(range(ROWS)) for c in range(COLUMNS)], U)  # as a picture has them
LINES = [U(d) for d in (1, 6, 7, 8)]  # up, and the three that cross columns


def _lines() -> NDArray[np.float32]:
    """[42, 69] which cells each line of four has."""
    found = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                cells = [(row + i * down, column + i * right) for i in range(4)]
                if all(y < ROWS and 0 <= x < COLUMNS for y, x in cells):
                    line = np.zeros(ROWS * COLUMNS, np.float32)
                    line[[y * COLUMNS + x for y, x in cells]] = 1
                    found.append(line)
    return np.stack(found, 1)


IN_LINE = _lines()


class Connect4(Game):
    """threats: the network is shown, too, which cells would complete four, of either side, and which can be played:
    what a player sees at once.
    """

    name = "connect4"
    num_actions, words, longest = COLUMNS, 2, COLUMNS * ROWS  # words: own stones, the other's

    def __init__(self, threats: bool = True) -> None:
        self.threats = threats
        self.planes = (5 if threats else 2, ROWS, COLUMNS)

    def start(self) -> States:
        return np.zeros(2, U)

    def legal(self, states: States) -> NDArray[np.bool_]:
        return ((states[:, 0] | states[:, 1])[:, None] & TOPS) == 0

    def play(self, states: States, actions: Actions) -> States:
        own, other = states[:, 0], states[:, 1]
        taken = own | other
        after = taken | (taken + FEET[actions])  # the lowest empty cell of the column
        return np.stack([other, after ^ other], 1)

    def result(self, states: States) -> NDArray[np.float32]:
        """Only the side that has just moved can have won."""
        result = np.full(len(states), np.nan, np.float32)
        taken = states[:, 0] | states[:, 1]
        result[taken == BOARD] = 0
        result[four(states[:, 1])] = -1
        return result

    def inputs(self, states: States) -> NDArray[np.uint8]:
        own, other = states[:, 0], states[:, 1]
        words = [own, other]
        if self.threats:
            taken = own | other
            words += [completing(own, taken), completing(other, taken), (taken + BOTTOM) & BOARD]
        planes = bits(np.stack(words, 1).reshape(-1), CELLS)
        return planes.reshape(len(states), *self.planes)

    def from_stones(self, own: NDArray[np.bool_], other: NDArray[np.bool_]) -> States:
        return np.stack([words_of(own, CELLS), words_of(other, CELLS)], 1)

    def symmetries(self) -> Sequence[Symmetry]:
        cells = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)[:, ::-1]
        return [Symmetry(cells.reshape(-1).copy(), np.arange(COLUMNS)[::-1].copy())]

    def heuristic(self, states: States) -> NDArray[np.float32]:
        """Lines of four cells that only one side has stones in; three of them count nine times one."""
        own, other = (bits(states[:, side], CELLS).astype(np.float32) @ IN_LINE for side in (0, 1))
        value = np.where(other == 0, own**2, 0) - np.where(own == 0, other**2, 0)
        return (value.sum(1) / (9 * IN_LINE.shape[1])).astype(np.float32)

    @property
    def text_order(self) -> NDArray[np.int64]:
        """Column by column, from the bottom."""
        return np.array([(ROWS - 1 - row) * COLUMNS + column for column in range(COLUMNS) for row in range(ROWS)])

    def action_name(self, action: int) -> str:
        return str(action + 1)

    def picture(self, state: States, own: str = "x", other: str = "o") -> str:
        return super().picture(state, own, other) + "\n" + " ".join(map(str, range(1, COLUMNS + 1)))


def four(stones: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether there are four in a row among the stones [B]."""
    found = np.zeros_like(stones)
    for line in LINES:
        pairs = stones & (stones >> line)
        found |= pairs & (pairs >> (line + line))
    return found != 0


def completing(stones: NDArray[np.uint64], taken: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[B] the empty cells that would complete four of these stones."""
    up = stones << LINES[0]
    found = up & (up << LINES[0]) & (up << (LINES[0] + LINES[0]))
    for line in LINES[1:]:
        two = line + line
        left, right = stones << line, stones >> line
        pairs = left & (stones << two)
        found |= pairs & ((stones << (two + line)) | right)
        pairs = right & (stones >> two)
        found |= pairs & ((stones >> (two + line)) | left)
    return found & BOARD & ~taken
