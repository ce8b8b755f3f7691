"""Search trees of many games in lockstep: one new position of each is evaluated with every simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydratune.games.game import Actions, Game, States

Forward = Callable[[States], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""[B, words] positions -> (logits [B, A], values [B] from -1 to 1 for the side to move). What it says of one position
must not depend on the others."""

Path = list[tuple[NDArray[np.int64], NDArray[np.int64], Actions]]  # (games, rows, moves) of each level
FORBIDDEN = np.float32(-1e9)  # in place of minus infinity, of which 0 times is not a number


class Nodes(NamedTuple):
    """What is known of some nodes, P of them; moves come first, which is the order in which numpy sums fast. q is from
    the view of the node's own side to move.
    """

    logits: NDArray[np.float32]  # [A, P] of the network; FORBIDDEN where a move is not legal
    prior: NDArray[np.float32]  # [A, P] their softmax
    value: NDArray[np.float32]  # [P] of the network
    visits: NDArray[np.float32]  # [A, P]
    q: NDArray[np.float32]  # [A, P] mean value of a move's visits, exact where it is proven; 0 where it is unknown
    known: NDArray[np.bool_]  # [A, P] visited or proven
    exact: NDArray[np.float32]  # [A, P] q where it is proven, else nan

    @property
    def legal(self) -> NDArray[np.bool_]:
        return self.logits > FORBIDDEN

    def first(self, count: int) -> Nodes:
        return Nodes._make(part[..., :count] for part in self)


Scores = Callable[[Nodes], NDArray[np.float32]]  # [A, P] of what to do within the tree: the largest is done


class Tree:
    """G trees of at most `size` nodes after the root. scores: which move a node within the tree makes next.

    Positions in which the game has ended have the value that the rules give them, and what follows from these by
    minimax is proven: such nodes are exact, and are not searched any more (MCTS-Solver, Winands et al. 2008).

    Node n of game g has row g * (size + 1) + n of every table.
    """

    def __init__(self, game: Game, forward: Forward, states: States, size: int, scores: Scores) -> None:
        actions, rows = game.num_actions, len(states) * (size + 1)
        self.game, self.forward, self.scores, self.actions = game, forward, scores, actions
        self.games = np.arange(len(states))
        self.roots = self.games * (size + 1)
        self.states = np.zeros((rows, game.words), np.uint64)
        self.network = np.zeros((rows, 2 * actions + 1), np.float32)  # logits, prior, value
        self.moves = np.zeros((rows, 3 * actions), np.float32)  # visits, sum of values, q where proven
        self.moves[:, 2 * actions :] = np.nan
        self.children = np.full((rows, actions), -1, np.int64)
        self.proven = np.full(rows, np.nan, np.float32)
        self.next = np.zeros(rows, np.int64)  # what `scores` says
        self.used = 0
        self._expand(self.roots, states)
        self.root = self._judged(self.roots)

    def value_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.network[rows, -1]

    def simulate(self, first: Actions) -> None:
        """One simulation of every game, which begins with the moves `first` [G] at the root."""
        path = self._descend(first)
        leaf, new = self._leaf(path)
        values = self.value_of(leaf)
        games, rows, actions = (np.concatenate(parts) for parts in zip(*path, strict=True))
        edges = np.bincount(games)  # of each game's path
        above = edges[games] - np.repeat(np.arange(len(path)), [len(level[0]) for level in path])
        flat = rows * (3 * self.actions) + actions
        moves = self.moves.reshape(-1)
        moves[flat] += 1
        moves[flat + self.actions] += np.where(above % 2 == 1, -values[games], values[games])
        self._prove(path, leaf)
        self.root = self._judged(np.concatenate([rows, new])).first(len(self.games))

    def _judged(self, rows: NDArray[np.int64]) -> Nodes:
        """These nodes, each of them knowing now what to do next: no move of which a loss is proven."""
        nodes = self._nodes(rows)
        self.next[rows] = np.where(nodes.exact == -1, FORBIDDEN, self.scores(nodes)).argmax(0)
        return nodes

    def _nodes(self, rows: NDArray[np.int64]) -> Nodes:
        a = self.actions
        network, moves = (np.ascontiguousarray(table.take(rows, 0).T) for table in (self.network, self.moves))
        visits, total, exact = moves[:a], moves[a : 2 * a], moves[2 * a :]
        proven = ~np.isnan(exact)
        q = np.where(proven, exact, total / np.maximum(visits, 1))
        return Nodes(network[:a], network[a : 2 * a], network[-1], visits, q, proven | (visits > 0), exact)

    def _descend(self, first: Actions) -> Path:
        """(games, rows, moves) of each level, down to a move whose position is not in the tree, or is proven."""
        games, rows, actions = self.games, self.roots, first
        path = []
        while len(games):
            path.append((games, rows, actions))
            child = self.children[rows, actions]
            on = (child >= 0) & np.isnan(self.proven[child])
            games, rows = games[on], child[on]
            actions = self.next[rows]
        return path

    def _leaf(self, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """([G] the node that each path leads to, made and evaluated where it is new; those that are new and go on)"""
        parents, actions = np.empty_like(self.roots), np.empty_like(self.roots)
        for games, rows, made in path:
            parents[games], actions[games] = rows, made
        leaf = self.children[parents, actions]
        new = leaf < 0
        self.used += 1
        leaf[new] = fresh = self.roots[new] + self.used
        if not len(fresh):
            return leaf, fresh
        self.children[parents[new], actions[new]] = fresh
        return leaf, self._expand(fresh, self.game.play(self.states[parents[new]], actions[new]))

    def _expand(self, rows: NDArray[np.int64], states: States) -> NDArray[np.int64]:
        """Those of the rows in which the game goes on."""
        self.states[rows] = states
        self.proven[rows] = self.network[rows, -1] = result = self.game.result(states)
        on = np.isnan(result)
        rows, states = rows[on], states[on]
        if len(rows):
            logits, values = self.forward(states)
            logits = np.where(self.game.legal(states), logits, FORBIDDEN)
            self.network[rows] = np.concatenate([logits, softmax(logits.T).T, values[:, None]], 1)
        return rows

    def _prove(self, path: Path, leaf: NDArray[np.int64]) -> None:
        """Hand what is proven of the leaves up as far as it proves more."""
        proven, a = self.proven[leaf], self.actions
        if np.isnan(proven).all():
            return
        for games, rows, actions in reversed(path):
            sure = ~np.isnan(proven[games])
            if not sure.any():
                continue
            games, rows, actions = games[sure], rows[sure], actions[sure]
            self.moves[rows, 2 * a + actions] = -proven[games]
            forbidden = self.network[rows, :a] <= FORBIDDEN
            exact = np.where(forbidden, np.float32(-1), self.moves[rows, 2 * a :])
            best = np.fmax.reduce(exact, 1)  # nan is left out where there is a number
            settled = (best == 1) | ~np.isnan(exact).any(1)
            proven[games] = self.proven[rows] = np.where(settled, best, np.nan)
            self.network[rows[settled], -1] = best[settled]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the first dimension."""
    shares = np.exp(logits - logits.max(0))
    return shares / shares.sum(0)
