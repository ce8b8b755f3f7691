"""Matches: two players from the same openings, with either colour each, and what can be said of who is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydratune.core.seeding import derive_seed
from hydratune.games.game import Game
from hydratune.games.players import Player

BOOTSTRAP = 10_000


@dataclass(frozen=True)
class MatchResult:
    """Of pairs of games, one pair an opening. points: [openings] of the first player's two games, from 0 to 2."""

    openings: Sequence[Sequence[int]]
    points: NDArray[np.float64]
    wins: int
    draws: int
    losses: int
    distinct: int  # games that differ from each other
    moves: Sequence[Sequence[int]]  # of every game, openings included; the first player's first

    @property
    def games(self) -> int:
        return self.wins + self.draws + self.losses

    @property
    def share(self) -> float:
        """Of the points that the first player has."""
        return float(self.points.mean() / 2)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95% of the share, by a bootstrap over openings."""
        low, high = np.quantile(self._resampled(seed), [0.025, 0.975])
        return float(low), float(high)

    def p_value(self, seed: int = 0) -> float:
        """That the first player is no better, by the same bootstrap."""
        return float((self._resampled(seed) <= 0.5).mean())

    def _resampled(self, seed: int) -> NDArray[np.float64]:
        draw = np.random.default_rng(derive_seed(seed, "bootstrap"))
        chosen = draw.integers(0, len(self.points), (BOOTSTRAP, len(self.points)))
        return self.points[chosen].mean(1) / 2


def elo(share: float) -> float:
    """Difference in rating that gives this share of the points; without end for all or none of them."""
    if share in (0.0, 1.0):
        return math.inf if share else -math.inf
    return 400 * math.log10(share / (1 - share))


def openings(game: Game, plies: int, most: int | None = None, seed: int = 0) -> list[list[int]]:
    """Moves that lead to distinct positions after so many plies, symmetric ones once, in which the game goes on; `most`
    of them are drawn. Raises ValueError where there is none.
    """
    states, paths = game.start()[None], np.zeros((1, 0), np.int64)
    for _ in range(plies):
        rows, moves = np.nonzero(game.legal(states))
        states, paths = game.play(states[rows], moves), np.concatenate([paths[rows], moves[:, None]], 1)
        on = np.isnan(game.result(states))
        states, paths = states[on], paths[on]
        if not len(paths):
            raise ValueError(f"--openings {plies}: no game of {game.name} goes on for so long")
        _, once = np.unique(game.canonical(states), axis=0, return_index=True)
        states, paths = states[np.sort(once)], paths[np.sort(once)]
    if most is not None and most < len(paths):
        draw = np.random.default_rng(derive_seed(seed, "openings"))
        paths = paths[np.sort(draw.permutation(len(paths))[:most])]
    return paths.tolist()


def play_match(
    game: Game,
    first: Player,
    second: Player,
    begins: Sequence[Sequence[int]],
    seen: Callable[[int, int], None] | None = None,
) -> MatchResult:
    """Every opening twice, all games in lockstep. seen: told (games that have ended, all of them)."""
    pairs = [list(moves) for moves in begins for _ in (0, 1)]  # the first player moves first in the even games
    states = np.stack([game.after(moves) for moves in pairs])
    turns = np.array([(len(moves) + i) % 2 for i, moves in enumerate(pairs)])  # 0: the first player's
    points = np.zeros(len(pairs))
    alive = np.arange(len(pairs))
    while len(alive):
        for player, turn in ((first, 0), (second, 1)):
            own = alive[turns[alive] == turn]
            if not len(own):
                continue
            chosen = player.choose(states[own], [pairs[i] for i in own])
            states[own] = game.play(states[own], chosen)
            for i, move in zip(own, chosen, strict=True):
                pairs[i].append(int(move))
            result = game.result(states[own])
            over = ~np.isnan(result)
            gained = (1 - result[over]) / 2  # the result is that of the other side, which is to move
            points[own[over]] = gained if turn == 0 else 1 - gained
            turns[own] = 1 - turn
            alive = np.setdiff1d(alive, own[over])
            if seen is not None:
                seen(len(pairs) - len(alive), len(pairs))
    wins, draws, losses = (int((points == value).sum()) for value in (1, 0.5, 0))
    distinct = len({tuple(moves) for moves in pairs})
    return MatchResult(begins, points.reshape(-1, 2).sum(1), wins, draws, losses, distinct, pairs)
