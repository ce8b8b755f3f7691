"""Which metric of which evaluation set selects."""

from __future__ import annotations

from hydratune.config.groups import LATEST
from hydratune.config.instantiate import nearest
from hydratune.core.task import Monitor, Task


def monitor_of(asked: str | None, task: Task) -> Monitor:
    """asked: evals.NAME.METRIC; None: validation, by the task's own; latest: none selects.

    Raises ValueError for a metric that the task has not.
    """
    if asked in (None, LATEST):
        return Monitor(task.monitor, latest=asked == LATEST)
    _, split, metric = asked.split(".")
    known = task.monitors or (task.monitor,)
    if metric not in known:
        raise ValueError(f"monitor={asked}: {nearest(metric, known)}")
    return Monitor(metric, split)
