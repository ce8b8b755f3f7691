"""Positions of which a solver has said what every move leads to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydratune.core.task import Task
from hydratune.core.types import MOVE_FORBIDDEN, MOVE_UNKNOWN, PositionTargets
from hydratune.data.boards.board_dataset import BoardDataset, Positions
from hydratune.data.dataset import SPLITS, check_share
from hydratune.data.hashes import hashed
from hydratune.games.game import Game, States

STONES, PLIES = ("opening", "middle", "end"), ("near", "midway", "far")
EDGES = (14, 28)  # stones on the board, and plies left under perfect play


class SolvedPositions(BoardDataset):
    """A text file with a position a line: its cells, the number of stones, and `move:score` of every legal move, with
    commas between them; a score above 0 wins, the larger the sooner, 0 draws.

    A position and those that it turns into by symmetry are in the same split, which the position alone decides.
    """

    def __init__(
        self, task: Task, game: Game, path: str, symmetries: bool = True, children: float = 0.0,
        val_share: float = 0.025, test_share: float = 0.05, sharpness: float = 0.25,
    ) -> None:  # fmt: skip
        """children: share of the positions that a move leads to, whose value is known as well, that train beside those
        of the file. sharpness: the policy that is learned is softmax(sharpness * score) of the best moves, those that
        win, or draw where none wins.
        """
        super().__init__(task, game, symmetries)
        for key, share in (("val_share", val_share), ("test_share", test_share)):
            check_share(key, share)
        if not 0 <= children <= 1:
            raise ValueError(f"dataset.children={children}: a share from 0 to 1")
        if sharpness < 0:
            raise ValueError(f"dataset.sharpness={sharpness}: at least 0")
        self.path, self.children, self.sharpness = Path(path), children, sharpness
        self.val_share, self.test_share = val_share, test_share
        self._known: tuple[States, NDArray[np.float32], NDArray[np.float64]] | None = None

    def files(self) -> str:
        self._check()
        return hashed(self.path)

    def split(self, name: str) -> Positions:
        states, scores, place = self._all()
        first = {"test": 0.0, "val": self.test_share, "train": self.test_share + self.val_share}[name]
        last = {"test": self.test_share, "val": self.test_share + self.val_share, "train": 1.0}[name]
        chosen = (place >= first) & (place < last)
        if not chosen.any():
            raise ValueError(f"dataset.path={self.path}: no position is left for {name}")
        found = self._positions(states[chosen], scores[chosen])
        return self._with_children(found, scores[chosen]) if name == "train" and self.children else found

    def split_names(self) -> Sequence[str]:
        return SPLITS

    def evaluated_parts(self) -> dict[str, Positions]:
        """The splits that there are: of another file, too, those of val and test are none that this one trains with."""
        _, _, place = self._all()
        edges = {"test": (0.0, self.test_share), "val": (self.test_share, self.test_share + self.val_share)}
        edges["train"] = (self.test_share + self.val_share, 1.0)
        names = [n for n in SPLITS if ((place >= edges[n][0]) & (place < edges[n][1])).any()]
        return {name: self.split(name) for name in names}

    def _check(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"dataset.path={self.path}: no such file")

    def _all(self) -> tuple[States, NDArray[np.float32], NDArray[np.float64]]:
        """(positions, scores [N, A] with nan where a move is not legal, [N] where each lies between 0 and 1)"""
        if self._known is None:
            self._check()
            texts, scores = self._read()
            try:
                states = self.game.read(texts)
            except ValueError as error:
                raise ValueError(f"dataset.path={self.path}: {error}") from None
            legal = self.game.legal(states)
            wrong = np.flatnonzero((legal == np.isnan(scores)).any(1) | ~np.isnan(self.game.result(states)))
            if len(wrong):
                raise ValueError(
                    f"dataset.path={self.path}: line {wrong[0] + 1} has not a score for each legal move and no other"
                )
            self._known = states, scores, hashed_place(self.game.canonical(states))
        return self._known

    def _read(self) -> tuple[list[str], NDArray[np.float32]]:
        texts, flat = [], []
        actions = self.game.num_actions
        for number, line in enumerate(self.path.read_text().splitlines()):
            try:
                text, _, moves = line.split()
                texts.append(text)
                for move in moves.split(","):
                    action, score = move.split(":")
                    if not 0 <= int(action) < actions:
                        raise ValueError
                    flat.append((number, int(action), float(score)))
            except ValueError:
                raise ValueError(
                    f"dataset.path={self.path}: line {number + 1} is not a position, its stones and move:score,..."
                ) from None
        if not texts:
            raise ValueError(f"dataset.path={self.path}: holds no position")
        scores = np.full((len(texts), actions), np.nan, np.float32)
        rows, columns, values = zip(*flat, strict=True)
        scores[list(rows), list(columns)] = values
        return texts, scores

    def _positions(self, states: States, scores: NDArray[np.float32]) -> Positions:
        best = np.nanmax(scores, 1)
        outcomes = np.where(np.isnan(scores), np.float32(MOVE_FORBIDDEN), np.sign(scores))
        good = outcomes == np.sign(best)[:, None]
        weight = np.where(good, np.exp(self.sharpness * (np.nan_to_num(scores) - best[:, None])), 0)
        policy = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
        value = np.eye(3, dtype=np.float32)[np.sign(best).astype(int) + 1]
        targets = PositionTargets(
            torch.from_numpy(policy), torch.from_numpy(value), torch.from_numpy(outcomes.astype(np.int8))
        )
        kinds, names = kinds_of(self.game, states, best)
        return Positions(states, torch.from_numpy(self.game.inputs(states)), targets, kinds, names)

    def _with_children(self, found: Positions, scores: NDArray[np.float32]) -> Positions:
        """And positions that one move leads to, of which the value alone is known; none that val or test holds."""
        rows, moves = np.nonzero(~np.isnan(scores))
        states = self.game.play(found.states[rows], moves)
        outcome = -np.sign(scores[rows, moves])
        draws = hashed_place(self.game.canonical(states), salt=1)
        held_out = hashed_place(self.game.canonical(states)) < self.test_share + self.val_share
        kept = np.flatnonzero(np.isnan(self.game.result(states)) & ~held_out & (draws < self.children))
        _, once = np.unique(self.game.canonical(states[kept]), axis=0, return_index=True)
        kept = kept[np.sort(once)]
        states, outcome = states[kept], outcome[kept]
        legal = self.game.legal(states)
        targets = PositionTargets(
            torch.zeros(len(states), self.game.num_actions),
            torch.from_numpy(np.eye(3, dtype=np.float32)[outcome.astype(int) + 1]),
            torch.from_numpy(np.where(legal, MOVE_UNKNOWN, MOVE_FORBIDDEN).astype(np.int8)),
        )
        return Positions(
            np.concatenate([found.states, states]),
            torch.cat([found.inputs, torch.from_numpy(self.game.inputs(states))]),
            PositionTargets(*(torch.cat(pair) for pair in zip(found.targets, targets, strict=True))),
            torch.cat([found.kinds, torch.full((len(states),), -1)]),
            found.kind_names,
            f"{len(found):,} positions of the file, and {len(states):,} that a move leads to",
        )


def hashed_place(states: States, salt: int = 0) -> NDArray[np.float64]:
    """[N] from 0 to 1, a function of each position alone (SplitMix64 of its words)."""
    mixed = np.full(len(states), salt, np.uint64)
    for word in states.T:
        mixed = (mixed ^ word) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def kinds_of(game: Game, states: States, best: NDArray[np.float32]) -> tuple[Tensor, list[str]]:
    """([N] kinds, their names): by stones on the board and plies left, as Pascal Pons's sets are. Of other games, whose
    scores may count in other ways, by stones alone.
    """
    stones = game.stones(states)
    share = stones if game.name == "connect4" else stones * 42 // (game.planes[1] * game.planes[2])
    by_stones = np.digitize(share, EDGES)
    if game.name != "connect4":
        return torch.from_numpy(by_stones), list(STONES)
    by_plies = np.digitize(plies_left(stones, best), EDGES)
    return torch.from_numpy(by_stones * 3 + by_plies), [f"{a} {b}" for a in STONES for b in PLIES]


def plies_left(stones: NDArray[np.int64], best: NDArray[np.float32]) -> NDArray[np.int64]:
    """[N] until a game of Connect Four ends, where both sides play for the best score: 22 less the winner's stones."""
    own, other = stones // 2, (stones + 1) // 2
    wins, loses = 2 * (22 - best - own) - 1, 2 * (22 + best - other)
    return np.where(best > 0, wins, np.where(best < 0, loses, 42 - stones)).astype(np.int64)
