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
from hydratune.core.types import Backbone
from hydratune.core.version import __version__
from hydratune.data.boards.generations import SHARD, Generations, write_shard
from hydratune.distributed.runtime import Precision, Runtime, bf16_units
from hydratune.engine.state import digest
from hydratune.experiment.components import runtime_of
from hydratune.experiment.evaluator import Evaluator
from hydratune.experiment.job_group import dataset_of_job
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
    body: Backbone
    network: Network
    tensors: Mapping[str, Tensor]
    runtime: Runtime

    @property
    def rules(self) -> Rules:
        search = build(self.job.config.search, "search", self.job.trust)
        return Rules(self.dataset.game, search, self.dataset.play.rows, self.dataset.play.openings)

    def content(self, number: int) -> dict[str, Any]:
        """What determines a generation's games."""
        own, config = self.dataset, self.job.config
        named = sorted(self.tensors.items())
        return {
            "generation": number,
            "seed": config.seed,
            "weights": fingerprint(
                {"names": [[n, list(t.shape)] for n, t in named], "values": digest(t for _, t in named)}
            ),
            "model": config.model,
            "task": config.dataset["task"],
            "game": own.game.name,
            "rules": config.dataset["game"],
            "search": config.search,
            **vars(own.play),
            "precision": str(self.runtime.chosen),
            "device": self.runtime.torch_device.type,
            "hydratune": __version__,
        }


def play_precision(job: Job) -> Precision:
    """dataset.play.precision; auto: bf16 where the device has units for it, as games do not wait for a probe."""
    asked = job.config.dataset["play"]["precision"]
    device = runtime_of(job.config, job.trust).torch_device
    fast = asked == "bf16" or (asked == "auto" and bf16_units(device))
    return Precision(torch.bfloat16 if fast else torch.float32, False)


def player_of(job: Job, precision: str, partial: Path | None = None) -> Player:
    """With the weights that lie in `partial`, or the first ones, which nothing was loaded into yet."""
    runtime = runtime_of(job.config, job.trust).choose(Precision.parse(precision))
    dataset = dataset_of_job(job)
    assert isinstance(dataset, Generations)
    body, network = first_network(job, dataset, dataset.spec())
    if partial is not None:
        network.load(load_file(partial / WEIGHTS))
    return Player(job, dataset, body, network, network.state_dict(), runtime)


def play_shard(player: Player, number: int, partial: Path, shard: int, seen: Any = None) -> None:
    """Write the shard, whole or not at all."""
    own = player.dataset.play
    games = range(shard * own.shard, min((shard + 1) * own.shard, own.games))
    player.network.to(player.runtime.torch_device)
    evaluator = Evaluator(player.network, player.dataset.game, player.runtime, own.rows)
    played = play(player.rules, evaluator, games, generation_seed(player.job.config.seed, number), seen)
    path = partial / SHARD.format(shard)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write_shard(unfinished, played)
    checkpoint.fsync(unfinished)
    os.replace(unfinished, path)


def generation_seed(seed: int, number: int) -> int:
    return derive_seed(seed, "generation", number)
