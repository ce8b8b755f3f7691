"""Gumbel search over many games as a plain numpy loop: the peer of scripts/bench/selfplay.py, and nobody else's.

Arrays of [games, nodes, moves], one level of every tree after the other, no proofs: what one writes first.
"""

from __future__ import annotations

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class PlainGumbel:
    def __init__(self, game, forward, simulations: int, c_visit: float = 50.0, c_scale: float = 0.1) -> None:
        self.game, self.forward, self.simulations = game, forward, simulations
        self.c_visit, self.c_scale = c_visit, np.float32(c_scale)

    def completed(self, g: np.ndarray, n: np.ndarray) -> np.ndarray:
        visits, logits, legal = self.visits[g, n], self.logits[g, n], self.legal[g, n]
        q = self.total[g, n] / np.maximum(visits, 1)
        prior = softmax(logits)
        seen = visits > 0
        mean = (prior * q * seen).sum(1) / np.maximum((prior * seen).sum(1), 1e-12)
        count = visits.sum(1)
        mixed = (self.value[g, n] + count * mean) / (1 + count)
        q = np.where(seen, q, mixed[:, None])
        return np.where(legal, self.c_scale * (self.c_visit + visits.max(1, keepdims=True)) * (q + 1) / 2, 0)

    def search(self, states: np.ndarray, noise: np.ndarray, turns: np.ndarray) -> np.ndarray:
        games, size, moves = len(states), self.simulations + 1, self.game.num_actions
        g = np.arange(games)
        self.states = np.zeros((games, size, self.game.words), np.uint64)
        self.logits, self.legal = np.zeros((games, size, moves), np.float32), np.zeros((games, size, moves), bool)
        self.visits, self.total = (np.zeros((games, size, moves), np.float32) for _ in (0, 1))
        self.children = np.full((games, size, moves), -1)
        self.value, self.ended = np.zeros((games, size), np.float32), np.zeros((games, size), bool)
        self.add(g, np.zeros(games, int), states)
        root = np.zeros(games, int)
        for sim in range(self.simulations):
            scores = noise + self.logits[:, 0] + self.completed(g, root)
            ready = self.legal[:, 0] & (self.visits[:, 0] == turns[:, sim, None])
            action, node, active, path = np.where(ready, scores, -np.inf).argmax(1), root.copy(), g.copy(), []
            last = [node.copy(), action.copy()]
            while len(active):
                path.append((active, node[active], action[active]))
                last[0][active], last[1][active] = node[active], action[active]
                child = self.children[active, node[active], action[active]]
                on = (child >= 0) & ~self.ended[active, child]
                active = active[on]
                node[active] = child[on]
                if not len(active):
                    break
                legal, logits = self.legal[active, node[active]], self.logits[active, node[active]]
                policy = softmax(np.where(legal, logits, -1e9) + self.completed(active, node[active]))
                visits = self.visits[active, node[active]]
                behind = policy - visits / (1 + visits.sum(1, keepdims=True))
                action[active] = np.where(self.legal[active, node[active]], behind, -np.inf).argmax(1)
            leaf = self.children[g, last[0], last[1]]
            new = leaf < 0
            leaf = np.where(new, sim + 1, leaf)
            self.children[g[new], last[0][new], last[1][new]] = sim + 1
            self.add(g[new], leaf[new], self.game.play(self.states[g[new], last[0][new]], last[1][new]))
            value = -self.value[g, leaf]
            for active, nodes, actions in reversed(path):
                self.visits[active, nodes, actions] += 1
                self.total[active, nodes, actions] += value[active]
                value[active] = -value[active]
        scores = noise + self.logits[:, 0] + self.completed(g, root)
        most = self.visits[:, 0] == self.visits[:, 0].max(1, keepdims=True)
        return np.where(most & self.legal[:, 0], scores, -np.inf).argmax(1)

    def add(self, g: np.ndarray, n: np.ndarray, states: np.ndarray) -> None:
        self.states[g, n] = states
        result = self.game.result(states)
        logits, value = self.forward(states)
        self.ended[g, n] = over = ~np.isnan(result)
        self.legal[g, n] = self.game.legal(states)
        self.logits[g, n], self.value[g, n] = logits, np.where(over, np.nan_to_num(result), value)
