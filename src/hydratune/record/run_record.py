"""What a run leaves behind in run.json, typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hydratune.config.aliases import upgraded_record
from hydratune.core.paths import RUN_JSON as RUN_JSON


@dataclass(frozen=True)
class Lineage:
    """Where a run's first weights came from."""

    run: str | None = None  # directory of the run that they are of
    checkpoint: str | None = None
    sha256: str | None = None
    averaged: bool | None = None
    metrics: Mapping[str, float] | None = None
    monitor: str | None = None
    parent: Mapping[str, Any] | None = None  # that run's own lineage
    weights: str | None = None  # published weights, which the model brought
    file: str | None = None
    soup: str | None = None  # how the weights of several jobs were averaged,
    of: Sequence[str] | None = None  # and which

    @staticmethod
    def read(values: Any) -> Lineage | None:
        if values is not None and not isinstance(values, Mapping):  # no run has written that; it is shown as it is
            return Lineage(run=str(values))
        known = {f.name for f in fields(Lineage)}
        return None if values is None else Lineage(**{k: v for k, v in values.items() if k in known})

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None}


@dataclass(frozen=True)
class RunRecord:
    """run.json. What is not known (yet) has its default, and is not written."""

    status: str | None = None  # running, complete, paused, stopped, interrupted, failed or soup; None: nothing is there
    stage: str | None = None
    command: str | None = None  # as typed
    overrides: Sequence[str] = ()
    choices: Mapping[str, str] | None = None  # config group -> option
    sweep: bool = False  # whether it is a job of one
    config_hash: str | None = None  # what was asked for, by which a sweep knows its jobs again
    fingerprint: str | None = None  # of `provenance`
    provenance: Mapping[str, Any] | None = None  # what determines its weights; None: it never began
    init_from: str | None = None
    lineage: Lineage | None = None
    seed: int | None = None
    trust: Sequence[str] = ()
    num_steps: int | None = None
    last_phase: int | None = None  # first step of the last one that trains something new
    started: str | None = None
    ended: str | None = None
    versions: Mapping[str, str] | None = None
    runtime: Mapping[str, Any] | None = None
    again: str | None = None  # a command that makes the same bits by itself
    monitor: str | None = None  # the metric that selects,
    selects: str | None = None  # and the evaluation set that it is of; None: validation
    val_samples: int | None = None
    spec: Mapping[str, Any] | None = None  # what the network is given and what it answers
    gradient_norms: Mapping[str, float] | None = None  # of layer groups, by which the freezing strategy has chosen
    trained_with: Sequence[str] = ()  # jobs that it shared a loop with
    frozen_unchanged: bool | None = None
    step: int | None = None
    history: Sequence[Sequence[float]] = ()  # [step, monitor] of every evaluation
    metrics: Mapping[str, float] | None = None
    best_step: int | None = None
    stopped: str | None = None  # why it ended before its last step
    seconds: float | None = None
    checkpoint: Mapping[str, str] | None = None  # path and SHA-256 of the best one
    error: str | None = None
    test_error: str | None = None
    nonfinite: Mapping[str, Any] | None = None
    skipped: Sequence[Mapping[str, Any]] = ()
    events: Mapping[str, int] | None = field(default=None)  # sizes of event files, while their end is being written

    @staticmethod
    def read(directory: Path) -> RunRecord:
        """Of a run directory, older versions' too; all defaults where there is no run.json yet."""
        path = directory / RUN_JSON
        return RunRecord.parse(json.loads(path.read_text())) if path.exists() else RunRecord()

    @staticmethod
    def parse(values: Mapping[str, Any]) -> RunRecord:
        """Raises ValueError for what is no JSON object."""
        if not isinstance(values, Mapping):
            raise ValueError("it is no JSON object")
        known = {f.name for f in fields(RunRecord)}
        today = {k: v for k, v in upgraded_record(values).items() if k in known}
        empty = {f.name: () for f in fields(RunRecord) if f.default == ()}
        today = {k: empty.get(k) if v is None else v for k, v in today.items()}
        return RunRecord(**{**today, "lineage": Lineage.read(today.get("lineage"))})

    def as_json(self) -> dict[str, Any]:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        result = {k: v for k, v in given.items() if v is not None and v != ()}
        if self.lineage is not None:
            result["lineage"] = self.lineage.as_json()
        return result

    def changed(self, **changes: Any) -> RunRecord:
        return replace(self, **changes)

    @property
    def exists(self) -> bool:
        return self.status is not None

    @property
    def began(self) -> bool:
        return self.provenance is not None

    def score(self, split: str | None = None) -> float | None:
        """The monitor on a split, where it is known; None: on what selects."""
        return (self.metrics or {}).get(f"{split or self.selects or 'val'}_{self.monitor}")
