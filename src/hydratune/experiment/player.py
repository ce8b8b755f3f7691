"""Who plays a generation of games: a network, its search, and the numbers in which it computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hydratune.config.fingerprint import fingerprint
from hydratune.config.instantiate import build
from hydratune.config.job import Job
from hydratune.core.seeding import derive_seed
from hydratune.core.version import __version__
from hydratune.data.boards.generations import SHARD, Generations, write_shard
from hydratune.distributed.runtime import Precision, Runtime, bf16_units
from hydratune.engine.state import digest
from hydratune.experiment.components import runtime_of
from hydratune.experiment.job_group import dataset_of_job
from hydratune.experiment.opinion import Opinion
from hydratune.experiment.prepare import first_network
from hydratune.games.selfplay import Rules, play
from hydratune.models.network import Network
from hydratune.record import checkpoint

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Player:
    """Who plays, and how. tensors: the network's, by name."""

    job: Job
    dataset: Generations
    network: Network
    tensors: Mapping[str, Tensor]
    runtime: Runtime

    @property
    def rules(self) -> Rules:
        search = build(self.job.config.search, "search", self.job.trust)
        return Rules(self.dataset.game, search, self.dataset.play.rows, self.dataset.play.openings)

    def content(self, number: int) -> dict[str, Any]:
        """What determines a generation's games."""
        own, named = self.dataset, sorted(self.tensors.items())
        return {
            "generation": number,
            "seed": self.job.config.seed,
            "weights": fingerprint({"names": [n for n, _ in named], "values": digest(t for _, t in named)}),
            "game": own.game.name,
            "rules": self.job.config.dataset["game"],
            "search": self.job.config.search,
            **vars(own.play),
            "precision": str(self.runtime.chosen),
            "hydratune": __version__,
        }


def play_precision(runtime: Runtime) -> Runtime:
    """bf16 where the device has units for it, unless fp32 is asked for: games do not wait for a probe."""
    fast = runtime.precision != "fp32" and bf16_units(runtime.torch_device)
    return runtime.choose(Precision(torch.bfloat16 if fast or runtime.precision == "bf16" else torch.float32, False))


def player_of(job: Job, partial: Path | None = None, precision: str | None = None) -> Player:
    """With the weights that lie in `partial`, or the first ones, which nothing was loaded into yet."""
    runtime = play_precision(runtime_of(job.config, job.trust))
    if precision is not None:
        runtime = runtime.choose(Precision.parse(precision))
    dataset = dataset_of_job(job)
    assert isinstance(dataset, Generations)
    _, network = first_network(job, dataset, dataset.spec())
    if partial is not None:
        network.load(load_file(partial / WEIGHTS))
    return Player(job, dataset, network, network.state_dict(), runtime)


def play_shard(player: Player, number: int, partial: Path, shard: int, seen: Any = None) -> None:
    """Write the shard, whole or not at all."""
    own = player.dataset.play
    games = range(shard * own.shard, min((shard + 1) * own.shard, own.games))
    player.network.to(player.runtime.torch_device)
    opinion = Opinion(player.network, player.dataset.game, player.runtime, own.rows)
    played = play(player.rules, opinion, games, generation_seed(player.job.config.seed, number), seen)
    path = partial / SHARD.format(shard)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write_shard(unfinished, played)
    checkpoint.fsync(unfinished)
    os.replace(unfinished, path)


def generation_seed(seed: int, number: int) -> int:
    return derive_seed(seed, "generation", number)
