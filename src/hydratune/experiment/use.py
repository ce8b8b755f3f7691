"""The stages that use what was trained."""

from __future__ import annotations

from hydratune.config.job import Job
from hydratune.experiment.evaluating import evaluate_job
from hydratune.experiment.exporting import export_job
from hydratune.experiment.finish import Result
from hydratune.experiment.predicting import predict_job
from hydratune.record.screen import Screen

STAGES = {"evaluate": evaluate_job, "predict": predict_job, "export": export_job}


def use(job: Job, screen: Screen | None = None) -> Result:
    """Raises ValueError for whatever the job cannot be done with."""
    return STAGES[job.config.stage](job, screen or Screen())
