"""What evaluating, predicting and exporting have in common: a run directory that says what was used, and how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydratune.config.job import Job
from hydratune.experiment import report
from hydratune.experiment.trained import Trained
from hydratune.record.run import Run
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen


@contextmanager
def opened(job: Job, used: Trained) -> Iterator[Run]:
    """Its directory; run.json says from now on what is done there, and in the end how it went."""
    record = RunRecord(
        stage=job.config.stage,
        command=job.command,
        overrides=list(job.overrides),
        choices=dict(job.choices),
        init_from=job.config.init_from,
        lineage=used.origin.lineage,
        seed=job.config.seed,
        trust=list(job.trust),
        provenance={"model": job.config.model, "dataset": job.config.dataset, "origin": used.origin.hash},
        started=report.now(),
        versions=report.versions(),
        runtime=used.runtime.describe(),
    )
    with Run(job.directory, record) as run:
        yield run


def show_used(screen: Screen, run: Run, used: Trained) -> None:
    """The weights, and what is known of them."""
    job, record = used.job, used.record
    screen.line(f"{job.config.stage}  {report.label(job)}  ->  {report.shown_path(job.directory)}")
    best = record.score()
    known = "" if best is None else f", {record.selects or 'val'} {record.monitor} {best:.4f} when it was trained"
    screen.line(f"weights: {report.shown_path(used.home)}, {used.step} steps{known}")
    if not record.exists:
        report.show_load(screen, run, used.loaded)
    screen.line(f"computes in {used.runtime.chosen} on {used.runtime.torch_device}")
