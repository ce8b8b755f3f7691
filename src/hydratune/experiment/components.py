"""Every component of a job, built from its node: here and nowhere else, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydratune.config.instantiate import build
from hydratune.config.job import Job, JobConfig, Node
from hydratune.config.validate import strategy_node
from hydratune.core.types import Backbone, FreezeStrategy
from hydratune.data.dataset import Dataset, WeightsHome
from hydratune.distributed.process_group import launched
from hydratune.distributed.runtime import Runtime
from hydratune.engine.settings import Settings
from hydratune.models.network import as_body
from hydratune.optim.optimizers import OptimizerConfig
from hydratune.optim.schedules import Schedule


@dataclass(frozen=True)
class Training:
    """What a job trains with: no data, no network."""

    freeze: FreezeStrategy
    strategy: Node  # what the freeze strategy was built from, `norm` included
    optimizer: OptimizerConfig
    schedule: Schedule
    settings: Settings


def training_of(job: Job) -> Training:
    """Raises ValueError for values that no component can be built with."""
    config = job.config
    node = strategy_node(config.freeze, job.sweep, job.trust)
    return Training(
        freeze=build(node, "freeze", job.trust),
        strategy={**node, "norm": config.norm},
        optimizer=build(config.optimizer, "optimizer", job.trust),
        schedule=build(config.schedule, "schedule", job.trust),
        settings=build(config.engine, "engine", job.trust),
    )


def strategy_of(job: Job) -> Node:
    """What the job's freeze strategy would be built from, `norm` included."""
    return {**strategy_node(job.config.freeze, job.sweep, job.trust), "norm": job.config.norm}


def runtime_of(config: JobConfig, trust: Sequence[str], alone: bool = False) -> Runtime:
    """alone: as if this process were the only one."""
    runtime: Runtime = build(config.runtime, "runtime", trust, **({} if alone else launched()))
    return runtime


def dataset_of(node: Node, where: str, trust: Sequence[str], inherited: WeightsHome | None = None) -> Dataset:
    """inherited: where the weights lie that the run starts from, and what they are of no use without."""
    dataset: Dataset = build(node, where, trust, inherited=inherited)
    return dataset


def body_of(job: Job, dataset: Dataset) -> Backbone:
    supplied: dict[str, Any] = dict(dataset.supplied())
    return as_body(build(job.config.model, "model", job.trust, **supplied))
