"""hydra/launcher=local: hydratune's sweeps, as Hydra finds its launchers. Light: every start of Hydra loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Hands the jobs over; failed ones come back as such and nothing is raised."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # a sweeper may keep its study there

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydratune.sweep.forkserver import context

        context()  # the workers' imports begin beside ours
        from hydratune.sweep.launcher import launch

        return launch(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)
