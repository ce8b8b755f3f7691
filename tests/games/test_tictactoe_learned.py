"""Self-play from nothing learns a game that can be solved: no line of play beats it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hydratune
from hydratune.games.players import Minmax, Searcher
from hydratune.games.tictactoe import TicTacToe

GAME = TicTacToe()
LINE = [
    "stage=selfplay", "dataset/game=tictactoe", "model=board_resnet", "model.blocks=2", "model.width=16",
    "model.norm_groups=2", "init_from=null", "generations=8", "steps=150", "batch_size=64", "search.simulations=16",
    "dataset.play.games=256", "dataset.play.rows=64", "dataset.play.shard=64", "dataset.play.openings=2",
    "optimizer=adamw", "optimizer.lr=3e-3", "runtime.threads=1", "runtime.precision=fp32",
]  # fmt: skip
Moves = Callable[[np.ndarray], np.ndarray]


def lost_lines(choose: Moves, first: bool) -> tuple[int, int]:
    """(lines of play that it loses, all lines) where the other side tries every move, perfect ones among them."""
    states, own, lost, ended = GAME.start()[None], first, 0, 0
    while len(states):
        if own:
            states = GAME.play(states, choose(states))
        else:
            rows, moves = np.nonzero(GAME.legal(states))
            states = GAME.play(states[rows], moves)
        result = GAME.result(states)
        over = ~np.isnan(result)
        lost += 0 if own else int((result[over] == -1).sum())  # after the other's move, the side to move is ours
        ended += int(over.sum())
        states, own = states[~over], not own
    return lost, ended


def test_lines_that_are_lost_are_counted() -> None:
    """Whoever takes the first free cell loses some; who looks six plies ahead loses none."""
    wise = Minmax(GAME, 9)
    for first in (True, False):
        assert lost_lines(lambda states: GAME.legal(states).argmax(1), first)[0] > 0
        assert lost_lines(lambda states: wise.choose(states, [[0]] * len(states)), first)[0] == 0


@pytest.mark.slow
def test_self_play_from_nothing_never_loses(tmp_path: Path) -> None:
    """In both colours, with a search with which the untrained network loses; and the policy alone hardly ever does."""
    line = [*LINE, f"outputs={tmp_path}"]
    untrained = hydratune.run([*line, "generations=1", "steps=1", "name=untrained"], quiet=True).directory
    learned = hydratune.run([*line, "name=learned"], quiet=True).directory
    players = {
        (name, simulations): hydratune.load(directory).player(name, simulations)
        for name, directory in (("untrained", untrained), ("learned", learned))
        for simulations in (0, 64)
    }
    found = {key: sum(lost_lines(by(player), first)[0] for first in (True, False)) for key, player in players.items()}
    assert found["learned", 64] == 0 < found["untrained", 64], found
    assert found["learned", 0] < found["untrained", 0] / 10, found


def by(player: Searcher) -> Moves:
    return lambda states: player.choose(states, ())
