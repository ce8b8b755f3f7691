"""The config groups: one table, from which everything that goes through them takes what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A config group whose option is one component.

    weights: whether it determines a run's weights. own_in_pretraining: whether a pretraining of init_from=auto has one
    of its own; it takes the run's otherwise. together: whether the jobs of one training loop must agree on it.
    label: its place in a run's label, from 1; 0: it is not named there.
    """

    name: str
    weights: bool = True
    own_in_pretraining: bool = False
    together: bool = False
    label: int = 0


GROUPS = (
    Group("model", together=True, label=1),
    Group("optimizer", own_in_pretraining=True, label=4),
    Group("schedule", own_in_pretraining=True),
    Group("dataset", own_in_pretraining=True, together=True, label=2),
    Group("freeze", label=3),
    Group("engine", own_in_pretraining=True),
    Group("runtime", weights=False, together=True),
)
COMPONENTS = tuple(g.name for g in GROUPS)
LABELS = tuple(g.name for g in sorted(GROUPS, key=lambda g: g.label) if g.label)
# Plain keys that determine a run's weights, and how weights are taken over
WEIGHTS = ("batch_size", "epochs", "steps", "seed")
INIT = ("init_head", "init_key", "init_prefix", "init_map")
INIT_LIMITS = ("init_share", "init_unused")
SELFPLAY = "selfplay"
TRAINING = ("pretrain", "finetune", SELFPLAY)
LATEST = "latest"  # monitor=latest: no metric selects
USING = ("evaluate", "predict", "export")  # what was trained
STAGES = (*TRAINING, *USING)


def chosen_for_pretraining(choices: Mapping[str, str]) -> dict[str, str]:
    """group -> option of the pretraining that a run with these choices starts from."""
    named = ("model", *(g.name for g in GROUPS if g.own_in_pretraining and g.name != "engine"))
    own = {name: choices.get(f"{name}@pretrain.{name}", choices.get(name, "")) for name in named}
    return {**own, "freeze": "none", "stage": "pretrain"}
