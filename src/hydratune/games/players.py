"""Players of matches. One of a network is made where networks are; these need none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hydratune.core.seeding import derive_seed
from hydratune.games.game import Actions, Game, States
from hydratune.games.search import Search
from hydratune.games.tree import FORBIDDEN, Forward

SPIEL = {"connect4": "connect_four", "tictactoe": "tic_tac_toe", "othello8": "othello"}  # as open_spiel calls them

MOST = 20_000  # positions whose moves are looked at together


class Player(Protocol):
    name: str

    def choose(self, states: States, histories: Sequence[Sequence[int]]) -> Actions:
        """[B] a legal move of each position, which these moves have led to; none has ended."""
        ...


class Searcher:
    """A network with a search, or alone; the same position always gets the same move."""

    def __init__(self, name: str, game: Game, forward: Forward, search: Search | None) -> None:
        self.name, self.game, self.forward, self.search = name, game, forward, search

    def choose(self, states: States, histories: Sequence[Sequence[int]]) -> Actions:
        if self.search is not None:
            return self.search.search(self.game, self.forward, states, None).action
        logits, _ = self.forward(states)
        return np.where(self.game.legal(states), logits, FORBIDDEN).argmax(1)


class RandomPlayer:
    """Any legal move, f(seed, the moves so far)."""

    name = "random"

    def __init__(self, game: Game, seed: int = 0) -> None:
        self.game, self.seed = game, seed

    def choose(self, states: States, histories: Sequence[Sequence[int]]) -> Actions:
        draws = np.stack([self._draws(history) for history in histories])
        return np.where(self.game.legal(states), draws, -1).argmax(1)

    def _draws(self, history: Sequence[int]) -> NDArray[np.float64]:
        return np.random.Generator(np.random.Philox(key=derive_seed(self.seed, *history))).random(self.game.num_actions)


class Minmax:
    """Looks `depth` plies ahead, and takes what lies there for what the game's heuristic says of it. Of moves that seem
    equal it takes one by f(seed, the moves so far).
    """

    def __init__(self, game: Game, depth: int, seed: int = 0) -> None:
        if depth < 1:
            raise ValueError(f"minmax:{depth}: at least 1 ply")
        self.name, self.game, self.depth, self.seed = f"minmax:{depth}", game, depth, seed

    def choose(self, states: States, histories: Sequence[Sequence[int]]) -> Actions:
        values = self.values(states)
        draws = RandomPlayer(self.game, self.seed)
        ties = np.stack([draws._draws(history) for history in histories])
        return np.where(values >= values.max(1, keepdims=True), ties, -1).argmax(1)

    def values(self, states: States) -> NDArray[np.float32]:
        """[B, A] of each move, minus infinity where it is not legal."""
        found = np.full((len(states), self.game.num_actions), -np.inf, np.float32)
        for first in range(0, len(states), 16):
            rows, moves = np.nonzero(self.game.legal(states[first : first + 16]))
            after = self.game.play(states[first : first + 16][rows], moves)
            found[rows + first, moves] = -self._value(after, self.depth - 1)
        return found

    def _value(self, states: States, depth: int) -> NDArray[np.float32]:
        """[B] for the side to move; a win counts the more the sooner it comes."""
        result = self.game.result(states)
        value = np.where(np.isnan(result), 0, result * np.float32(1 + depth)).astype(np.float32)
        on = np.flatnonzero(np.isnan(result))
        if not len(on):
            return value
        if depth == 0:
            value[on] = self.game.heuristic(states[on])
            return value
        if len(on) > MOST:  # what is looked at together has to fit into memory
            for some in np.array_split(on, len(on) // MOST + 1):
                value[some] = self._value(states[some], depth)
            return value
        rows, moves = np.nonzero(self.game.legal(states[on]))
        below = -self._value(self.game.play(states[on][rows], moves), depth - 1)
        best = np.full(len(on), -np.inf, np.float32)
        np.maximum.at(best, rows, below)
        value[on] = best
        return value


class SpielMcts:
    """open_spiel's MCTS with random rollouts and its solver, a position after the other."""

    def __init__(self, game: Game, simulations: int, seed: int = 0) -> None:
        name = game.name if game.name != "othello" else f"othello{game.planes[1]}"
        if name not in SPIEL:
            raise ValueError(f"mcts:{simulations}: open_spiel has no {name}")
        try:
            import pyspiel
        except ImportError:
            raise ValueError("mcts: needs open_spiel; pip install 'hydratune[games]'") from None
        self.name = f"mcts:{simulations}"
        self._game: Any = pyspiel.load_game(SPIEL[name])
        rollouts = pyspiel.RandomRolloutEvaluator(1, seed)
        self._bot: Any = pyspiel.MCTSBot(self._game, rollouts, 2.0, simulations, 1000, True, seed, False)

    def choose(self, states: States, histories: Sequence[Sequence[int]]) -> Actions:
        found = []
        for history in histories:
            state = self._game.new_initial_state()
            for move in history:
                state.apply_action(int(move))
            found.append(int(self._bot.step(state)))
        return np.array(found)


def named(text: str, game: Game, seed: int = 0) -> Player | None:
    """random, minmax:5 or mcts:1000; None for what is none of these. Raises ValueError."""
    kind, _, number = text.partition(":")
    if kind == "random" and not number:
        return RandomPlayer(game, seed)
    if kind not in ("minmax", "mcts"):
        return None
    if not number.isdigit() or int(number) < 1:
        raise ValueError(f"{text}: a number follows, such as {kind}:{5 if kind == 'minmax' else 1000}")
    return Minmax(game, int(number), seed) if kind == "minmax" else SpielMcts(game, int(number), seed)
