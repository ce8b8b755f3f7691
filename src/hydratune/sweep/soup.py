"""Model soups: the average of the weights of jobs from one start (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hydratune.config.job import Job
from hydratune.experiment.locate import best_checkpoint
from hydratune.freeze.lora import merged
from hydratune.record import checkpoint
from hydratune.record.run_record import Lineage, RunRecord
from hydratune.sweep.measured import Measured


def start_of(directory: Path) -> str:
    """What a run's weights were before it began, and its fold: jobs for which these are equal may be averaged. Another
    fold has trained on what validates this one.
    """
    record = RunRecord.read(directory)
    made = record.provenance or {}
    fold = (made.get("dataset") or {}).get("fold")
    return json.dumps([made.get("model"), made.get("origin"), record.seed, fold], sort_keys=True)


def average(jobs: Sequence[Job], how: str, directory: Path) -> str:
    """Average the best weights of complete jobs, the best of them first; validate; keep it as a run of its own.

    Returns what was done. how: uniform takes all; greedy adds one where validation does not lose by it (the paper's
    recipe 1). The running statistics of BatchNorm are averaged like weights.
    """
    measured = Measured.of(jobs[0])
    monitor = measured.monitor
    taken = [jobs[0]]
    weights = weights_of(jobs[0])
    values = measured.metrics(weights)
    for job in jobs[1:]:
        tried = _with(weights, len(taken), weights_of(job))
        seen = measured.metrics(tried)
        if how == "uniform" or seen[monitor.key] >= values[monitor.key]:
            weights, values = tried, seen
            taken.append(job)
    message = f"{how} soup of {len(taken)} of {len(jobs)} jobs"
    lineage = Lineage(soup=how, of=[job.directory.name for job in taken])
    measured.keep(directory, weights, values, "soup", lineage, message)
    return message


def weights_of(job: Job) -> dict[str, Tensor]:
    """Of the best evaluation, averaged ones where there are any, with low-rank updates merged in."""
    snapshot = checkpoint.load(best_checkpoint(job.directory))
    return merged({**snapshot.model, **snapshot.ema})


def _with(mean: Mapping[str, Tensor], count: int, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of one more. Counters stay the first one's."""
    return {n: t.lerp(other[n], 1 / (count + 1)) if t.is_floating_point() else t for n, t in mean.items()}
