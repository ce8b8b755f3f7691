"""Searches: from what a network says of positions to a better policy, many games in lockstep.

A search is f(position, weights, noise): it begins with an empty tree, and no game sees another.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hydratune.games.game import Actions, Game, States
from hydratune.games.tree import FORBIDDEN, Forward, Nodes, Tree, softmax


@dataclass(frozen=True)
class Searched:
    """What a search says of each of B positions, none of which has ended."""

    action: Actions  # [B] what it would play
    policy: NDArray[np.float32]  # [B, A] improved: what a network should learn
    value: NDArray[np.float32]  # [B] for the side to move; exact where it is proven
    proven: NDArray[np.bool_]  # [B]
    prior: NDArray[np.float32]  # [B, A] of the network alone, with noise where the search adds it there
    visits: NDArray[np.float32]  # [B, A]


class Search(ABC):
    """simulations: positions that are evaluated for a move, beside the one in which it is made."""

    simulations: int

    @abstractmethod
    def search(self, game: Game, forward: Forward, states: States, noise: NDArray[np.float32] | None) -> Searched:
        """noise: [B, A] standard Gumbel, for play that varies; None: the strongest play.

        Raises ValueError where there is no simulation.
        """

    def with_simulations(self, simulations: int) -> Search:
        return type(self)(**{**vars(self), "simulations": simulations})


class Gumbel(Search):
    """Sequential halving at the root over Gumbel-Top-k moves, and within the tree the move whose visits fall behind its
    improved policy most (Danihelka et al., ICLR 2022, algorithms 1 and 2, equations 7 to 14). Halved as by mctx: a move
    that was left behind may come back, where it is as often visited.
    """

    def __init__(
        self, simulations: int | list[int] = 64, considered: int = 16, c_visit: float = 50.0, c_scale: float = 0.1,
        rescale: bool = False,
    ) -> None:  # fmt: skip
        """considered: moves that are looked at, at most. A value q counts (c_visit + visits of the most visited move) *
        c_scale * q in logits; q from 0 to 1, or with `rescale` spread to that between the worst and the best move, as
        mctx has it, whose c_scale this is; the paper's is 1.
        """
        if considered < 2:
            raise ValueError(f"search.considered={considered}: at least 2")
        if c_visit < 0 or not c_scale > 0:
            raise ValueError(f"search.c_visit={c_visit}, search.c_scale={c_scale}: at least 0, and above 0")
        self.simulations = checked_simulations(simulations)
        self.considered, self.c_visit, self.c_scale, self.rescale = considered, c_visit, c_scale, rescale

    def search(self, game: Game, forward: Forward, states: States, noise: NDArray[np.float32] | None) -> Searched:
        simulations = the_only(self.simulations)
        tree = Tree(game, forward, states, simulations, self.within)
        root = tree.root
        drawn = root.logits if noise is None else root.logits + noise.T
        width = np.minimum(root.legal.sum(0), self.considered)
        turns = np.stack([schedule(int(w), simulations) for w in width])  # [B, simulations]
        for turn in turns.T:
            root = tree.root
            candidates = root.legal & (root.visits == turn)
            tree.simulate(np.where(candidates, drawn + self.advantage(root), -np.inf).argmax(0))
        root = tree.root
        most = np.where(root.legal, root.visits, -1)
        action = decisive(root, drawn + self.advantage(root), most == most.max(0))
        return searched(tree, action, self.improved(root))

    def within(self, nodes: Nodes) -> NDArray[np.float32]:
        """[A, P] how far a move's share of the visits lies behind its policy (equation 14)."""
        shares = nodes.visits / (1 + nodes.visits.sum(0))
        return np.where(nodes.legal, self.improved(nodes) - shares, FORBIDDEN)

    def improved(self, nodes: Nodes) -> NDArray[np.float32]:
        """[A, P] softmax(logits + sigma(completed q)), 0 where a move is not legal (equation 11)."""
        return softmax(nodes.logits + self.advantage(nodes))

    def advantage(self, nodes: Nodes) -> NDArray[np.float32]:
        """[A, P] sigma(completed q), 0 where a move is not legal (equation 8)."""
        q = np.where(nodes.known, nodes.q, mixed_value(nodes))
        if self.rescale:
            low = np.where(nodes.legal, q, np.inf).min(0)
            high = np.where(nodes.legal, q, -np.inf).max(0)
            q = (q - low) / np.maximum(high - low, np.float32(1e-8))
        else:
            q = (q + 1) / 2
        scale = ((self.c_visit + nodes.visits.max(0)) * self.c_scale).astype(np.float32)
        return np.where(nodes.legal, scale * q, np.float32(0))


class Puct(Search):
    """As AlphaZero: q + c * prior * sqrt(visits) / (1 + visits of the move) at every node (Silver et al. 2018)."""

    def __init__(self, simulations: int | list[int] = 64, c: float = 1.5, noise: float = 0.25) -> None:
        """c: weight of the prior. noise: share of the softmax of the noise in the prior at the root."""
        if not c > 0:
            raise ValueError(f"search.c={c}: must be above 0")
        if not 0 <= noise <= 1:
            raise ValueError(f"search.noise={noise}: a share from 0 to 1")
        self.simulations, self.c, self.noise = checked_simulations(simulations), c, noise

    def search(self, game: Game, forward: Forward, states: States, noise: NDArray[np.float32] | None) -> Searched:
        simulations = the_only(self.simulations)
        tree = Tree(game, forward, states, simulations, self.within)
        prior, root = tree.root.prior, tree.root
        if noise is not None:
            spread = softmax(np.where(root.legal, noise.T, FORBIDDEN))
            mixed = (1 - self.noise) * prior + self.noise * spread
            tree.network[tree.roots, game.num_actions : 2 * game.num_actions] = mixed.T
            root = root._replace(prior=mixed)
        for _ in range(simulations):
            tree.simulate(self.within(root).argmax(0))
            root = tree.root
        played = np.log(np.maximum(root.visits, np.float32(1e-9))) + (0 if noise is None else noise.T)
        action = decisive(root, played + np.float32(1e-3) * prior, root.legal & (root.visits > 0))
        return searched(tree, action, root.visits / root.visits.sum(0))

    def within(self, nodes: Nodes) -> NDArray[np.float32]:
        """[A, P]; a move that was never made counts as the node's own value so far."""
        q = np.where(nodes.known, nodes.q, mixed_value(nodes))
        wide = np.sqrt(np.maximum(nodes.visits.sum(0), 1)) / (1 + nodes.visits)
        return np.where(nodes.legal, q + np.float32(self.c) * nodes.prior * wide, FORBIDDEN)


def mixed_value(nodes: Nodes) -> NDArray[np.float32]:
    """[P] what moves that were never made are taken for: the network's value and those of the moves that were made,
    weighted by the prior (Danihelka et al., equation 33).
    """
    visits = nodes.visits.sum(0)
    prior = np.where(nodes.known, nodes.prior, np.float32(0))
    seen = (prior * nodes.q).sum(0) / np.maximum(prior.sum(0), np.float32(1e-12))
    return (nodes.value + visits * seen) / (1 + visits)


@cache
def schedule(width: int, simulations: int) -> NDArray[np.int64]:
    """[simulations] the visits that a move must have to be a candidate: sequential halving over `width` moves."""
    rounds = max(math.ceil(math.log2(width)), 1)
    turns: list[int] = []
    visits, left = 0, width
    while len(turns) < simulations:
        for _ in range(max(simulations // (rounds * left), 1)):
            turns += [visits] * left
            visits += 1
        left = max(left // 2, min(2, width))
    return np.array(turns[:simulations])


def decisive(root: Nodes, scores: NDArray[np.float32], candidates: NDArray[np.bool_]) -> Actions:
    """[B] the candidate of the largest score; but a move that is proven to win before all, and one that is proven to
    lose after all others.
    """
    rank = np.select([root.exact == 1, root.exact == -1, candidates, root.legal], [3, 1, 2, 1.5], 0)
    return (rank * 1e9 + scores.astype(np.float64)).argmax(0)


def searched(tree: Tree, action: Actions, policy: NDArray[np.float32]) -> Searched:
    root, proven = tree.root, tree.proven[tree.roots]
    sure = ~np.isnan(proven)
    mean = (tree.value_of(tree.roots) + (root.visits * root.q).sum(0)) / (1 + root.visits.sum(0))
    return Searched(action, policy.T, np.where(sure, proven, mean), sure, root.prior.T, root.visits.T)


def checked_simulations(simulations: int | list[int]) -> int:
    """Raises ValueError. Several are kept as they are: an evaluation takes one after the other."""
    for one in simulations if isinstance(simulations, list) else [simulations]:
        if one < 0:
            raise ValueError(f"search.simulations={one}: at least 0")
    return simulations  # type: ignore[return-value]


def the_only(simulations: int) -> int:
    if not isinstance(simulations, int) or simulations < 1:
        raise ValueError(
            f"search.simulations={simulations}: one whole number, at least 1; stage=evaluate takes several"
        )
    return simulations
