"""What a network plays with a search: as a player of matches, and measured on solved positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydratune.config.instantiate import build
from hydratune.data.boards.board_dataset import BoardDataset, Positions
from hydratune.distributed import signals
from hydratune.experiment.evaluator import Evaluator
from hydratune.experiment.trained import Trained
from hydratune.games.players import Searcher
from hydratune.games.search import Search
from hydratune.record.screen import Screen

ROWS = 256  # positions in lockstep
OF_EACH_KIND = 250  # solved positions that are searched, at most
KIND = "policy_value"  # of task


def game_of(used: Trained) -> BoardDataset:
    """Raises ValueError for a network that plays no game."""
    if not isinstance(used.dataset, BoardDataset):
        raise ValueError(f"init_from={used.job.config.init_from}: plays no game")
    return used.dataset


def player(used: Trained, name: str, simulations: int, rows: int = ROWS) -> Searcher:
    """The trained network with its own search; 0 simulations: its policy alone."""
    game = game_of(used).game
    search: Search = build(used.job.config.search, "search", used.job.trust)
    evaluator = Evaluator(used.network, game, used.runtime, rows)
    return Searcher(name, game, evaluator, search.with_simulations(simulations) if simulations else None)


@dataclass(frozen=True)
class Searches:
    """wrong: [simulations][kind] shares of wrong moves; counts: positions of each kind."""

    kinds: Sequence[str]
    counts: Sequence[int]
    wrong: Mapping[int, Sequence[float]]

    def mean(self, simulations: int) -> float:
        """Over kinds."""
        return float(np.mean(self.wrong[simulations]))


def searched(used: Trained, split: Positions, screen: Screen, label: str) -> Searches | None:
    """With each number of simulations that search.simulations names, on the same positions; None where none is solved.

    A move is wrong where another one leads to a better end. Raises Stopped where a signal asks for it.
    """
    asked = used.job.config.search["simulations"]
    numbers = sorted({asked} if isinstance(asked, int) else {*asked})
    chosen = sample(split)
    if not any(map(len, chosen.values())):
        return None
    ids = np.concatenate(list(chosen.values()))
    states, moves = split.states[ids], split.targets.moves.numpy()[ids]
    best = np.where(moves >= 2, -2, moves).max(1)
    wrong: dict[int, list[float]] = {}
    with screen.progress(f"search {label}", 0, len(numbers) * len(ids)) as line:
        for i, simulations in enumerate(numbers):
            own, made = player(used, "", simulations), []
            for first in range(0, len(ids), ROWS):
                if (number := signals.asked()) is not None:
                    raise signals.Stopped(number)
                made.append(own.choose(states[first : first + ROWS], ()))
                line.show(i * len(ids) + first, {"simulations": str(simulations)})
            led = np.take_along_axis(moves, np.concatenate(made)[:, None], 1)[:, 0]
            parts = np.split(led != best, np.cumsum([len(c) for c in chosen.values()])[:-1])
            wrong[simulations] = [float(part.mean()) for part in parts]
    return Searches(list(chosen), [len(c) for c in chosen.values()], wrong)


def sample(split: Positions) -> dict[str, NDArray[np.int64]]:
    """Numbers of solved positions of each kind, the first ones: a set has them in no order that matters."""
    solved = (split.targets.moves.numpy() <= 1).any(1)
    kinds = split.kinds.numpy()
    found = {name: np.flatnonzero(solved & (kinds == i))[:OF_EACH_KIND] for i, name in enumerate(split.kind_names)}
    return {name: ids for name, ids in found.items() if len(ids)}


def table(found: Searches) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): wrong moves by kind, and their mean."""
    columns = ["positions", "number", *("network" if n == 0 else f"search {n}" for n in found.wrong)]
    rows = [
        [kind, str(count), *(f"{shares[i]:.1%}" for shares in found.wrong.values())]
        for i, (kind, count) in enumerate(zip(found.kinds, found.counts, strict=True))
    ]
    mean = ["mean", str(sum(found.counts)), *(f"{found.mean(n):.1%}" for n in found.wrong)]
    return columns, [*rows, mean]
