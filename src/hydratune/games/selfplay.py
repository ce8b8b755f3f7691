"""Games that a network plays against itself, many in lockstep; each is a function of the weights and its own number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydratune.core.seeding import derive_seed
from hydratune.games.game import Game, States
from hydratune.games.search import Search
from hydratune.games.tree import FORBIDDEN, Forward

Seen = Callable[[int, int], None]  # (games that have ended, positions so far)


@dataclass(frozen=True)
class Rules:
    """How games are played. rows: games in lockstep; openings: moves at most with which a game begins that are drawn
    from the network's policy and not searched.
    """

    game: Game
    search: Search
    rows: int
    openings: int


@dataclass(frozen=True)
class Played:
    """P positions of some games, each from the view of its side to move, in the order of games and plies."""

    states: States
    policy: NDArray[np.float32]  # [P, A] that the search found
    value: NDArray[np.float32]  # [P] that the search found
    outcome: NDArray[np.float32]  # [P] how the game ended
    game: NDArray[np.int64]  # [P] number
    ply: NDArray[np.int64]  # [P] counted from the start, openings included


def play(rules: Rules, forward: Forward, numbers: Sequence[int], seed: int, seen: Seen | None = None) -> Played:
    """Games of these numbers, each to its end. A row that becomes free takes the next one, so that what is played does
    not depend on how long games are. seed: of the generation.
    """
    game, total = rules.game, len(numbers)
    noise = np.stack([gumbel(seed, number, game) for number in numbers])  # [games, plies, A]
    states, plies = _opened(rules, forward, noise, seed, numbers)
    waiting = list(range(total))
    rows = np.array(waiting[: rules.rows])
    del waiting[: rules.rows]
    records: list[tuple[NDArray[np.int64], NDArray[np.int64], States, NDArray[np.float32], NDArray[np.float32]]] = []
    ended = np.zeros(total, np.float32)  # for whoever moved first
    done = positions = 0
    while len(rows):
        found = rules.search.search(game, forward, states[rows], noise[rows, plies[rows]])
        records.append((rows, plies[rows].copy(), states[rows], found.policy, found.value))
        states[rows] = game.play(states[rows], found.action)
        plies[rows] += 1
        result = game.result(states[rows])
        over = ~np.isnan(result)
        ended[rows[over]] = np.where(plies[rows[over]] % 2 == 0, result[over], -result[over])
        positions += len(rows)
        rows = np.concatenate([rows[~over], np.array(waiting[: over.sum()], np.int64)])
        del waiting[: over.sum()]
        done = total - len(waiting) - len(rows)
        if seen is not None:
            seen(done, positions)
    at, ply, seen_states, policy, value = (np.concatenate(parts) for parts in zip(*records, strict=True))
    order = np.lexsort((ply, at))
    outcome = np.where(ply % 2 == 0, ended[at], -ended[at])
    columns = (seen_states, policy, value, outcome, np.array(numbers)[at], ply)
    return Played(*(column[order] for column in columns))


def gumbel(seed: int, number: int, game: Game) -> NDArray[np.float32]:
    """[plies, A] standard Gumbel noise of one game."""
    draw = np.random.Generator(np.random.Philox(key=derive_seed(seed, "game", number)))
    return draw.gumbel(size=(game.longest, game.num_actions)).astype(np.float32)


def _opened(
    rules: Rules, forward: Forward, noise: NDArray[np.float32], seed: int, numbers: Sequence[int]
) -> tuple[States, NDArray[np.int64]]:
    """([games, words], [games] plies) after the first moves of each, from none to `openings`; none ends a game."""
    game = rules.game
    lengths = np.array([derive_seed(seed, "opening", n) % (rules.openings + 1) for n in numbers])
    states, plies = np.repeat(game.start()[None], len(numbers), 0), np.zeros(len(numbers), np.int64)
    for ply in range(rules.openings):
        rows = np.flatnonzero((lengths > ply) & (plies == ply))
        for some in np.split(rows, range(rules.rows, len(rows), rules.rows)):
            if not len(some):
                continue
            logits, _ = forward(states[some])
            logits = np.where(game.legal(states[some]), logits + noise[some, ply], FORBIDDEN)
            after = game.play(states[some], logits.argmax(1))
            on = np.isnan(game.result(after))
            states[some[on]] = after[on]
            plies[some[on]] += 1
    return states, plies
