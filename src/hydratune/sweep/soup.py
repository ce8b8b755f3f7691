"""Model soups: the average of the weights of jobs from one start (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hydratune import story
from hydratune.assemble import Job
from hydratune.engine.evaluate import evaluate
from hydratune.freeze.lora import merged
from hydratune.job import in_common
from hydratune.origin import best_checkpoint
from hydratune.record import checkpoint
from hydratune.record.run import read_record, write_json
from hydratune.runtime import Numerics


def start_of(directory: Path) -> str:
    """What a run's weights were before it began: jobs whose starts are equal may be averaged."""
    record = read_record(directory)
    made = record["made_of"]
    return json.dumps([made["model"], made["origin"], record["seed"]], sort_keys=True)


def cook(jobs: Sequence[Job], how: str, directory: Path) -> str:
    """Average the best weights of complete jobs, the best of them first; validate; keep it as a run of its own.

    Returns what was done. how: uniform takes all; greedy adds one where validation does not lose by it (the paper's
    recipe 1). The running statistics of BatchNorm are averaged like weights.
    """
    room, network = in_common(jobs[:1])
    task = room.dataset.task
    room = room.at(Numerics.read(read_record(jobs[0].directory)["runtime"]))
    network.to(room.runtime.torch_device, room.runtime.chosen.memory_format)
    val = room.stream(room.val_split)

    def validated(weights: Mapping[str, Tensor]) -> dict[str, float]:
        network.load(weights)
        return evaluate(network, task, val, room.spec, room.runtime).compute()

    taken = [jobs[0]]
    weights = _weights(jobs[0])
    values = validated(weights)
    for job in jobs[1:]:
        tried = _with(weights, len(taken), _weights(job))
        seen = validated(tried)
        if how == "uniform" or seen[task.monitor] >= values[task.monitor]:
            weights, values = tried, seen
            taken.append(job)
    state = {"step": 0, "best": {"step": 0}, "classes": list(room.spec.class_names)}
    path = checkpoint.save(directory / "checkpoints", 0, checkpoint.Snapshot(weights, state=state))
    said = f"{how} soup of {len(taken)} of {len(jobs)} jobs"
    record = {
        "stage": jobs[0].config["stage"],
        "status": "soup",
        "monitor": task.monitor,
        "val_samples": len(room.val_split),
        "metrics": {f"val_{k}": v for k, v in values.items()},
        "best_step": 0,
        "made_of": {"model": jobs[0].config["model"]},
        "lineage": {"soup": how, "of": [job.directory.name for job in taken]},
        "error": said,
        "ended": story.now(),
        "checkpoint": {"path": f"checkpoints/{path.name}", "sha256": checkpoint.model_hash(path)},
    }
    write_json(directory / "run.json", record)
    return said


def _weights(job: Job) -> dict[str, Tensor]:
    """Of the best evaluation, averaged ones where there are any, with low-rank updates merged in."""
    snapshot = checkpoint.load(best_checkpoint(job.directory))
    return merged({**snapshot.model, **snapshot.ema})


def _with(mean: Mapping[str, Tensor], count: int, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of one more. Counters stay the first one's."""
    return {n: t.lerp(other[n], 1 / (count + 1)) if t.is_floating_point() else t for n, t in mean.items()}
