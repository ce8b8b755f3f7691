"""Which metric of which evaluation set selects."""

from __future__ import annotations

from hydratune.config.instantiate import nearest
from hydratune.core.task import Monitor, Task


def monitor_of(asked: str | None, task: Task) -> Monitor:
    """asked: evals.NAME.METRIC; None: validation, by the task's own. Raises ValueError for a metric it has not."""
    if asked is None:
        return Monitor(task.monitor)
    _, split, metric = asked.split(".")
    known = task.monitors or (task.monitor,)
    if metric not in known:
        raise ValueError(f"monitor={asked}: {nearest(metric, known)}")
    return Monitor(metric, split)
