"""A trained network for Python: to predict with, to look into, to put elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.config.job import Job
from hydratune.core.batching import selected
from hydratune.data.stream import Batches
from hydratune.experiment.module import Whole
from hydratune.experiment.searching import ROWS, game_of, player
from hydratune.experiment.trained import Trained, trained
from hydratune.games.game import Game
from hydratune.games.players import Searcher
from hydratune.record.run_record import RunRecord


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """network: a torch module, in eval mode, from what `preprocess` gives to what the head answers."""

    network: Whole
    _used: Trained

    @property
    def directory(self) -> Path:
        return self._used.home

    @property
    def record(self) -> RunRecord:
        """What run.json says; of a foreign file, nothing."""
        return self._used.record

    @property
    def classes(self) -> list[str]:
        """What the outputs of the head stand for, in their order."""
        return list(self._used.task.answers(self._used.spec))

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the run, such as val_accuracy."""
        return dict(self.record.metrics or {})

    @property
    def config(self) -> dict[str, Any]:
        """The composed configuration, as far as it says what the network is and what it is given."""
        config = self._used.job.config
        return {"model": config.model, "dataset": config.dataset, "batch_size": config.batch_size, "seed": config.seed}

    @torch.no_grad()
    def preprocess(self, given: Sequence[Any]) -> Tensor | dict[str, Tensor]:
        """Files, pictures or texts as `network` takes them; several tensors by the names of its inputs.

        Raises ValueError for one that cannot be read.
        """
        used = self._used
        items = used.inputs.items(list(given))
        split = used.inputs.split_of(items)
        ((batch,),) = used.inputs.eval_views(split, used.body, Batches(len(items)), used.place)
        if split.faults:
            raise ValueError(next(iter(split.faults.values())))
        found: dict[str, Tensor] = used.inputs.unpacked(selected(batch.inputs, batch.ids.argsort()))
        return found if len(found) > 1 else next(iter(found.values()))

    def predict(self, given: Sequence[Any]) -> list[dict[str, Any]]:
        """A row for each: paths, PIL images or tensors; texts. One that cannot be read has an `error`."""
        if isinstance(given, str | Path):
            raise ValueError("predict: takes a list of inputs, also of one")
        return self._used.answered(list(given))

    @property
    def game(self) -> Game:
        """Raises ValueError for a network that plays none."""
        return game_of(self._used).game

    def player(self, name: str, simulations: int, rows: int = ROWS) -> Searcher:
        """For matches: the network with its search, or, with 0 simulations, alone. rows: positions in lockstep."""
        return player(self._used, name, simulations, rows)


def loaded(job: Job) -> LoadedRun:
    """What the job's `init_from` leads to."""
    with trained(job) as used:
        return LoadedRun(Whole(used.network, used.maker).eval(), used)
