"""hydra/sweeper=optuna with settings for what hydratune's jobs return, a validation metric.

It maximises (the plugin's own default would name the worst rate best), keeps its study in the sweep's directory, so
that the same line again goes on with it, and lives with jobs that fail. Modules of hydra_plugins are loaded in the
order of their names: hydra_optuna_sweeper's comes before this one, which takes its place. (No annotations from the
future here: Hydra runs the module before it can be found by its name, which dataclasses would need.)
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

from hydra.core.config_store import ConfigStore

try:
    from hydra_plugins.hydra_optuna_sweeper.config import Direction, OptunaSweeperConf
except ImportError:  # pip install 'hydratune[optuna]'
    pass
else:

    @dataclass
    class Maximising(OptunaSweeperConf):
        direction: Any = Direction.maximize
        storage: Any = "sqlite:///${hydra.sweep.dir}/optuna.db"
        study_name: str | None = "hydratune"
        max_failure_rate: float = 1.0

    store: Any = ConfigStore.instance().store
    more = {"replace": True} if "replace" in signature(store).parameters else {}  # Hydra 1.4 wants to be told
    store(group="hydra/sweeper", name="optuna", node=Maximising, provider="hydratune", **more)
