"""What a game is: rules for two players who alternate and see everything, for many positions at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

States = NDArray[np.uint64]  # [B, words], each row one position as the side to move sees it
Actions = NDArray[np.int64]  # [B]


class Symmetry(NamedTuple):
    """A board turned or mirrored: cell i of it is cell `cells[i]` of the board, and action a of it is `actions[a]`."""

    cells: NDArray[np.int64]  # [H * W]
    actions: NDArray[np.int64]  # [A]


class Game(ABC):
    """Rules. A position is a row of 64-bit words, as the side to move sees it; a pass, where there is one, is a move.

    num_actions: A; planes: (C, H, W) of what a network sees; words: of a position; longest: plies of the longest game.
    All methods take B positions, and none of them changes its arguments.
    """

    name: ClassVar[str]
    num_actions: int
    planes: tuple[int, int, int]
    words: int
    longest: int

    @abstractmethod
    def start(self) -> States:
        """[words], the first position."""

    @abstractmethod
    def legal(self, states: States) -> NDArray[np.bool_]:
        """[B, A]; of a position that has ended nobody asks."""

    @abstractmethod
    def play(self, states: States, actions: Actions) -> States:
        """[B, words] after legal moves, as the other side sees it."""

    @abstractmethod
    def result(self, states: States) -> NDArray[np.float32]:
        """[B]: 1 won, 0 drawn, -1 lost for the side to move; nan while the game goes on."""

    @abstractmethod
    def inputs(self, states: States) -> NDArray[np.uint8]:
        """[B, C, H, W] of 0 and 1; the first two planes are the own stones and the other's."""

    def stones(self, states: States) -> NDArray[np.int64]:
        """[B] stones on the board: how far a game is."""
        return self.inputs(states)[:, :2].sum((1, 2, 3), dtype=np.int64)

    @abstractmethod
    def from_stones(self, own: NDArray[np.bool_], other: NDArray[np.bool_]) -> States:
        """[B, words] of stones [B, H * W], row by row from the top."""

    @property
    def text_order(self) -> NDArray[np.int64]:
        """[H * W] which cell each character of a position's text stands for."""
        return np.arange(self.planes[1] * self.planes[2])

    def read(self, texts: Sequence[str]) -> States:
        """[B, words] of positions as text: m own stones, o the other's, . empty. Raises ValueError."""
        cells = self.planes[1] * self.planes[2]
        wrong = next((text for text in texts if len(text) != cells or set(text) - set("mo.")), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is no position of {self.name}: {cells} characters of m, o and .")
        signs = np.frombuffer("".join(texts).encode(), np.uint8).reshape(-1, cells)
        placed = np.empty_like(signs)
        placed[:, self.text_order] = signs
        return self.from_stones(placed == ord("m"), placed == ord("o"))

    def canonical(self, states: States) -> States:
        """[B, words], the same for all positions that a symmetry turns into one another."""
        stones = self.inputs(states)[:, :2].reshape(len(states), 2, -1) == 1
        best = states
        for symmetry in self.symmetries():
            other = self.from_stones(stones[:, 0, symmetry.cells], stones[:, 1, symmetry.cells])
            same = np.cumprod(other == best, 1).astype(bool)
            before = np.concatenate([np.ones((len(other), 1), bool), same[:, :-1]], 1)
            best = np.where(((other < best) & before).any(1, keepdims=True), other, best)
        return best

    def symmetries(self) -> Sequence[Symmetry]:
        """Those under which the rules stay the same, but for the identity."""
        return ()

    def heuristic(self, states: States) -> NDArray[np.float32]:
        """[B] what a position seems to be worth to a player who looks no further, within -1 and 1."""
        return np.zeros(len(states), np.float32)

    @abstractmethod
    def action_name(self, action: int) -> str:
        """As players call it, and type it."""

    @property
    def action_names(self) -> list[str]:
        return [self.action_name(action) for action in range(self.num_actions)]

    def picture(self, state: States, own: str = "x", other: str = "o") -> str:
        """The board [words] as text, the first row at the top."""
        mine, theirs = self.inputs(state[None])[0, :2]
        signs = np.where(mine == 1, own, np.where(theirs == 1, other, "."))
        return "\n".join(" ".join(row) for row in signs)

    def after(self, moves: Sequence[int]) -> States:
        """[words] after these moves from the start. Raises ValueError for one that is not legal."""
        state = self.start()[None]
        for number, action in enumerate(moves, 1):
            if not np.isnan(self.result(state)[0]):
                raise ValueError(f"move {number}: the game has ended")
            if not (0 <= action < self.num_actions and self.legal(state)[0, action]):
                raise ValueError(f"move {number}: {action} is not legal")
            state = self.play(state, np.array([action]))
        return state[0]


def bits(words: NDArray[np.uint64], where: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """[B] words -> [B, len(where)]: the bits `where`."""
    return ((words[:, None] >> where) & np.uint64(1)).astype(np.uint8)


def words_of(cells: NDArray[np.bool_], where: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[B, len(where)] -> [B] words with the bits `where`."""
    return (cells.astype(np.uint64) << where).sum(1, dtype=np.uint64)


def square_symmetries(side: int, more: int = 0) -> list[Symmetry]:
    """The seven of a square board whose actions are its cells, row by row, and `more` that stay as they are."""
    cells = np.arange(side * side).reshape(side, side)
    turned = [np.rot90(board, k) for board in (cells, cells.T) for k in range(4)]
    rest = np.arange(side * side, side * side + more)
    return [Symmetry(t.reshape(-1).copy(), np.concatenate([t.reshape(-1), rest])) for t in turned[1:]]
