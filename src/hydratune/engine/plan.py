"""What a trial does to its network, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydratune.core.task import Monitor
from hydratune.core.types import Phase
from hydratune.engine.settings import Settings
from hydratune.optim.optimizers import OptimizerConfig
from hydratune.optim.schedules import Schedule


@dataclass(frozen=True)
class TrainingPlan:
    """phases: as the strategy has planned them; those with patience may end earlier."""

    phases: Sequence[Phase]
    optimizer: OptimizerConfig
    schedule: Schedule
    settings: Settings
    seed: int
    monitor: Monitor
