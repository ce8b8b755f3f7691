"""Searches as one reads them in the papers: a game at a time, recursive, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hydratune.games.game import Game


def fake_network(game: Game, seed: int = 0) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Logits and values that depend on each position alone, by its words."""
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(64 * game.words, game.num_actions + 1)).astype(np.float32)

    def forward(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shifts = np.arange(64, dtype=np.uint64)
        bits = ((states[:, :, None] >> shifts) & np.uint64(1)).reshape(len(states), -1).astype(np.float32)
        rows = np.stack([b @ table for b in bits])  # one by one: sums do not depend on the batch
        return rows[:, :-1], np.tanh(rows[:, -1] / 2)

    return forward


@dataclass
class Node:
    state: np.ndarray
    value: float
    logits: dict[int, float]
    children: dict[int, Node] = field(default_factory=dict)
    visits: dict[int, int] = field(default_factory=dict)
    total: dict[int, float] = field(default_factory=dict)
    proven: float | None = None

    def known(self, a: int) -> bool:
        return self.visits.get(a, 0) > 0

    def q(self, a: int) -> float:
        proven = self.children[a].proven
        return -proven if proven is not None else self.total[a] / self.visits[a]

    def prior(self) -> dict[int, float]:
        most = max(self.logits.values())
        shares = {a: math.exp(x - most) for a, x in self.logits.items()}
        return {a: s / sum(shares.values()) for a, s in shares.items()}


class Reference:
    def __init__(self, game: Game, forward: Callable, c_visit: float = 50.0, c_scale: float = 0.1) -> None:
        self.game, self.forward, self.c_visit, self.c_scale = game, forward, c_visit, c_scale

    def node(self, state: np.ndarray) -> Node:
        result = float(self.game.result(state[None])[0])
        if not math.isnan(result):
            return Node(state, result, {}, proven=result)
        logits, values = self.forward(state[None])
        legal = np.flatnonzero(self.game.legal(state[None])[0])
        return Node(state, float(values[0]), {int(a): float(logits[0, a]) for a in legal})

    def simulate(self, node: Node, action: int) -> float:
        """The value of the move for the side to move at the node."""
        if action not in node.children:
            after = self.game.play(node.state[None], np.array([action]))[0]
            node.children[action] = child = self.node(after)
            found = -child.value
        elif (child := node.children[action]).proven is not None:
            found = -child.proven
        else:
            found = -self.simulate(child, self.within(child))
        node.visits[action] = node.visits.get(action, 0) + 1
        node.total[action] = node.total.get(action, 0.0) + found
        self.prove(node)
        return found

    def prove(self, node: Node) -> None:
        sure = {a: -c.proven for a, c in node.children.items() if c.proven is not None}
        if 1 in sure.values():
            node.proven = 1
        elif len(sure) == len(node.logits):
            node.proven = max(sure.values())
        if node.proven is not None:
            node.value = node.proven

    def mixed(self, node: Node) -> float:
        """mctx: (v + sum N * sum of prior q over the visited / their prior) / (1 + sum N)."""
        prior, visits = node.prior(), sum(node.visits.values())
        seen = [a for a in node.logits if node.known(a)]
        if not seen:
            return node.value
        mean = sum(prior[a] * node.q(a) for a in seen) / sum(prior[a] for a in seen)
        return (node.value + visits * mean) / (1 + visits)

    def sigma(self, node: Node) -> dict[int, float]:
        mixed, most = self.mixed(node), max(node.visits.values(), default=0)
        completed = {a: node.q(a) if node.known(a) else mixed for a in node.logits}
        return {a: (self.c_visit + most) * self.c_scale * (q + 1) / 2 for a, q in completed.items()}

    def improved(self, node: Node) -> dict[int, float]:
        sigma = self.sigma(node)
        scores = {a: x + sigma[a] for a, x in node.logits.items()}
        most = max(scores.values())
        shares = {a: math.exp(s - most) for a, s in scores.items()}
        return {a: s / sum(shares.values()) for a, s in shares.items()}

    def within(self, node: Node) -> int:
        policy, total = self.improved(node), sum(node.visits.values())
        lost = {a for a, child in node.children.items() if child.proven == 1}
        return max((a for a in policy if a not in lost), key=lambda a: policy[a] - node.visits.get(a, 0) / (1 + total))

    def search(self, state: np.ndarray, simulations: int, considered: int, noise: np.ndarray) -> tuple[int, dict, Node]:
        """(move, improved policy, root): algorithm 1 with algorithm 2's targets, halved as mctx halves."""
        root = self.node(state)
        drawn = {a: x + float(noise[a]) for a, x in root.logits.items()}
        for wanted in considered_visits(min(considered, len(drawn)), simulations):
            sigma = self.sigma(root)
            due = [a for a in drawn if root.visits.get(a, 0) == wanted]
            self.simulate(root, max(due, key=lambda a: drawn[a] + sigma[a]))
        sigma = self.sigma(root)
        most = max(root.visits.values())
        best = [a for a in root.logits if root.visits.get(a, 0) == most]
        return max(best, key=lambda a: drawn[a] + sigma[a]), self.improved(root), root


def considered_visits(considered: int, simulations: int) -> list[int]:
    """As mctx.seq_halving.get_sequence_of_considered_visits writes it down."""
    if considered <= 1:
        return list(range(simulations))
    rounds, sequence, visits, left = math.ceil(math.log2(considered)), [], [0] * considered, considered
    while len(sequence) < simulations:
        for _ in range(max(1, int(simulations / (rounds * left)))):
            sequence += visits[:left]
            for i in range(left):
                visits[i] += 1
        left = max(2, left // 2)
    return sequence[:simulations]
