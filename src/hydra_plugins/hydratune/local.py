"""hydra/launcher=local: hydratune's sweeps, as Hydra finds its launchers; and Hydra's own sweeper, which that launcher
spares composing each job twice. Light: every start of Hydra loads it. (No annotations from the future here: Hydra runs
the module before it can be found by its name, which dataclasses would need.)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Composes the jobs and hands them over; failed ones come back as such and nothing is raised."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydratune.sweep.composing import remembering

        self.loader, self.config = remembering(hydra_context.config_loader), config
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # a sweeper may keep its study there

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydratune.sweep.composing import Composer
        from hydratune.sweep.forkserver import context

        composer = Composer(self.loader, self.config, sys.argv[1:])
        composer.try_first(job_overrides)
        context()  # the workers' imports begin beside ours
        cells = composer.cells(job_overrides, initial_job_idx)
        from hydratune.sweep.launcher import launch  # loads torch: what is refused is refused before

        return launch(composer, cells)


class LocalSweeper(basic_sweeper.BasicSweeper):
    """Hydra's own. It composes every job to see whether that can be done, and our launcher sees to that itself."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        if not isinstance(self.launcher, LocalLauncher):
            super().validate_batch_is_legal(batch)


@dataclass
class LocalSweeperConf(basic_sweeper.BasicSweeperConf):
    _target_: str = f"{__name__}.LocalSweeper"


_store: Any = ConfigStore.instance().store
_more = {"replace": True} if "replace" in signature(_store).parameters else {}  # Hydra 1.4 wants to be told
_store(group="hydra/sweeper", name="basic", node=LocalSweeperConf, provider="hydratune", **_more)
