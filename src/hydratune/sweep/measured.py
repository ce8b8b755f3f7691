"""Weights that no job trained, such as averages of several: evaluated as a job is, and kept as a run of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hydratune.config.job import Job
from hydratune.core.spec_json import spec_as_json
from hydratune.core.task import Monitor
from hydratune.distributed.runtime import Numerics
from hydratune.engine.evaluate import evaluate
from hydratune.engine.stretch import Streams
from hydratune.experiment import report
from hydratune.experiment.job_group import JobGroup, in_common
from hydratune.experiment.selection import monitor_of
from hydratune.models.network import Network
from hydratune.record import checkpoint
from hydratune.record.run import write_record
from hydratune.record.run_record import Lineage, RunRecord


@dataclass(frozen=True)
class Measured:
    """The network of a complete job, in the numbers that it was trained in, for any weights."""

    job: Job
    group: JobGroup
    network: Network
    streams: Streams

    @staticmethod
    def of(job: Job) -> Measured:
        group, network = in_common([job])
        group = group.at(Numerics.read(RunRecord.read(job.directory).runtime or {}))
        network.to(group.runtime.torch_device, group.runtime.chosen.memory_format)
        return Measured(job, group, network, group.streams())

    @property
    def monitor(self) -> Monitor:
        return monitor_of(self.job.config.monitor, self.group.dataset.task)

    def metrics(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Of validation and of every evaluation set, as a run's record has them."""
        self.network.load(weights)
        found: dict[str, float] = {}
        for name, stream in {"val": self.streams.val, **self.streams.evals}.items():
            group = self.group
            seen = evaluate(self.network, group.dataset.task, stream, group.spec, group.runtime)
            found |= {f"{name}_{key}": value for key, value in seen.compute().items()}
        return found

    def keep(
        self, directory: Path, weights: Mapping[str, Tensor], metrics: Mapping[str, float], status: str,
        lineage: Lineage, message: str,
    ) -> None:  # fmt: skip
        """As a run that others can start from."""
        group, answers = self.group, self.group.answers
        head = {"kind": answers.kind, "answers": list(answers.names)}
        state = {"step": 0, "best": {"step": 0}, "classes": list(group.spec.class_names), "head": head}
        path = checkpoint.save(directory / "checkpoints", 0, checkpoint.Snapshot(weights, state=state))
        record = RunRecord(
            stage=self.job.config.stage,
            status=status,
            **group.selection(self.job),
            spec=spec_as_json(group.spec),
            choices=dict(self.job.choices),
            metrics=dict(metrics),
            best_step=0,
            provenance={"model": self.job.config.model, "files": group.dataset.files()},
            runtime=group.runtime.describe(),
            lineage=lineage,
            error=message,
            ended=report.now(),
            checkpoint={"path": f"checkpoints/{path.name}", "sha256": checkpoint.model_hash(path)},
        )
        write_record(directory, record)
        group.dataset.keep(directory)
