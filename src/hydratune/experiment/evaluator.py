"""What a network says of positions, as searches ask for it: batches of one size, whatever is asked."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hydratune.data.boards.board_dataset import OUTCOMES
from hydratune.distributed.runtime import Runtime
from hydratune.games.game import Game, States
from hydratune.models.network import Network


class Evaluator:
    """A `Forward` of searches. Libraries compute small batches in other ways than large ones, in their last bits: with
    every batch of the same size, what is said of a position does not depend on what it is asked together with.
    """

    def __init__(self, network: Network, game: Game, runtime: Runtime, rows: int) -> None:
        """rows: of every batch. The network is left in eval mode."""
        self.network, self.game, self.runtime = network, game, runtime
        self._inputs = torch.zeros(rows, *game.planes)
        self._format = runtime.chosen.memory_format
        self._outcomes = OUTCOMES.to(runtime.torch_device)
        for group in network.groups:
            group.module.eval()

    def __call__(self, states: States) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(logits [B, A], values [B])"""
        rows = len(self._inputs)
        if len(states) > rows:
            parts = [self(states[first : first + rows]) for first in range(0, len(states), rows)]
            logits, values = zip(*parts, strict=True)
            return np.concatenate(logits), np.concatenate(values)
        self._inputs[: len(states)] = torch.from_numpy(self.game.inputs(states))
        with torch.inference_mode():
            inputs = self._inputs.to(self.runtime.torch_device, memory_format=self._format)
            with self.runtime.autocast():
                policy, outcome = self.network.forward(inputs)
            values = outcome.float().softmax(1) @ self._outcomes
            return policy.float().cpu().numpy()[: len(states)], values.cpu().numpy()[: len(states)]
