"""Model soups: the average of the weights of jobs from one start (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hydratune.config.job import Job
from hydratune.distributed.runtime import Numerics
from hydratune.engine.evaluate import evaluate
from hydratune.experiment import report
from hydratune.experiment.job_group import in_common
from hydratune.experiment.locate import best_checkpoint
from hydratune.freeze.lora import merged
from hydratune.record import checkpoint
from hydratune.record.run import write_record
from hydratune.record.run_record import Lineage, RunRecord


def start_of(directory: Path) -> str:
    """What a run's weights were before it began: jobs whose starts are equal may be averaged."""
    record = RunRecord.read(directory)
    made = record.provenance or {}
    return json.dumps([made.get("model"), made.get("origin"), record.seed], sort_keys=True)


def average(jobs: Sequence[Job], how: str, directory: Path) -> str:
    """Average the best weights of complete jobs, the best of them first; validate; keep it as a run of its own.

    Returns what was done. how: uniform takes all; greedy adds one where validation does not lose by it (the paper's
    recipe 1). The running statistics of BatchNorm are averaged like weights.
    """
    group, network = in_common(jobs[:1])
    task = group.dataset.task
    group = group.at(Numerics.read(RunRecord.read(jobs[0].directory).runtime or {}))
    network.to(group.runtime.torch_device, group.runtime.chosen.memory_format)
    val = group.stream(group.val_split)

    def validated(weights: Mapping[str, Tensor]) -> dict[str, float]:
        network.load(weights)
        return evaluate(network, task, val, group.spec, group.runtime).compute()

    taken = [jobs[0]]
    weights = _weights(jobs[0])
    values = validated(weights)
    for job in jobs[1:]:
        tried = _with(weights, len(taken), _weights(job))
        seen = validated(tried)
        if how == "uniform" or seen[task.monitor] >= values[task.monitor]:
            weights, values = tried, seen
            taken.append(job)
    state = {"step": 0, "best": {"step": 0}, "classes": list(group.spec.class_names)}
    path = checkpoint.save(directory / "checkpoints", 0, checkpoint.Snapshot(weights, state=state))
    message = f"{how} soup of {len(taken)} of {len(jobs)} jobs"
    record = RunRecord(
        stage=jobs[0].config.stage,
        status="soup",
        monitor=task.monitor,
        val_samples=len(group.val_split),
        metrics={f"val_{k}": v for k, v in values.items()},
        best_step=0,
        provenance={"model": jobs[0].config.model},
        lineage=Lineage(soup=how, of=[job.directory.name for job in taken]),
        error=message,
        ended=report.now(),
        checkpoint={"path": f"checkpoints/{path.name}", "sha256": checkpoint.model_hash(path)},
    )
    write_record(directory, record)
    return message


def _weights(job: Job) -> dict[str, Tensor]:
    """Of the best evaluation, averaged ones where there are any, with low-rank updates merged in."""
    snapshot = checkpoint.load(best_checkpoint(job.directory))
    return merged({**snapshot.model, **snapshot.ema})


def _with(mean: Mapping[str, Tensor], count: int, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of one more. Counters stay the first one's."""
    return {n: t.lerp(other[n], 1 / (count + 1)) if t.is_floating_point() else t for n, t in mean.items()}
