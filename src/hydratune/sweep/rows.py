"""Jobs of a sweep as their directories tell of them: at any time, also while they run, and whatever became of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune.record.claim import is_claimed
from hydratune.record.run_record import RUN_JSON, RunRecord
from hydratune.sweep.grid import REPLICATES, cell_of

SWEEP = "sweep.json"  # what jobs the sweep has and what varies among them
# What is read of a run.json, as far as it is there
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "status": str, "monitor": str, "error": str, "test_error": str, "stopped": str, "metrics": dict, "history": list,
    "step": int, "num_steps": int, "val_samples": int, "seconds": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One job."""

    directory: Path
    varies: Mapping[str, str]
    status: str
    value: float  # validation metric of the best evaluation; NaN where there is none
    record: RunRecord
    strategy: str
    same_as: str | None = None

    @property
    def cell(self) -> tuple[tuple[str, str], ...]:
        """Its settings but for seed and fold."""
        return cell_of(self.varies)

    @property
    def replicate(self) -> tuple[str, ...]:
        """Its seed and its fold, which other cells may have too."""
        return tuple(self.varies.get(key, "") for key in REPLICATES)

    @property
    def error(self) -> str:
        """What became of it that was not meant; of a complete one, what became of its test."""
        if self.status == "complete":
            failed = self.record.test_error
            return str(self.record.stopped or (f"its test failed: {failed}" if failed else ""))
        return str(self.record.error or self.record.stopped or "")


def read_sweep(directory: Path) -> dict[str, Any]:
    """sweep.json. Raises ValueError where no sweep has been, or what it left cannot be read."""
    path = directory / SWEEP
    if not path.is_file():
        raise ValueError(f"{directory}: no sweep has been here (it should hold {SWEEP})")
    try:
        sweep = json.loads(path.read_text())
        words = [sweep["command"], *sweep["keys"]]
        for job in sweep["jobs"]:
            words += [job["directory"], job["strategy"], job.get("error") or "", job.get("same_as") or ""]
            words += [word for pair in job["varies"].items() for word in pair]
        "".join(words).encode()
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    return dict(sweep)


def read_rows(directory: Path, jobs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """jobs: as sweep.json lists them. One whose run.json cannot be read has the status `unreadable`."""
    return [_row(directory / job["directory"], job) for job in jobs]


def _row(home: Path, job: Mapping[str, Any]) -> Row:
    def row(status: str, value: float, record: RunRecord) -> Row:
        return Row(home, job["varies"], status, value, record, job["strategy"], job.get("same_as"))

    try:
        record = _sound(home)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        return row("unreadable", math.nan, RunRecord(error=f"run.json is damaged ({error})"))
    status = record.status or ("failed" if job.get("error") else "waiting")
    if status == "running" and not is_claimed(home):
        status = "interrupted"
    value = record.score()
    if value is None:
        value = max((v for _, v in record.history if math.isfinite(v)), default=math.nan)
    record = record.changed(error=job["error"]) if job.get("error") else record
    return row(status, value if math.isfinite(value) else math.nan, record)


def _sound(home: Path) -> RunRecord:
    """run.json. Raises ValueError, TypeError, OSError or RecursionError for one that no run has written."""
    path = home / RUN_JSON
    read = json.loads(path.read_text()) if path.exists() else {}
    if not isinstance(read, dict):
        raise ValueError("it is no JSON object")
    for key, kind in KINDS.items():
        if not isinstance(read.get(key), (kind, type(None))):
            raise ValueError(f"{key} is a {type(read[key]).__name__}")
    record = RunRecord.parse(read)
    numbers = [value for value in (record.metrics or {}).values() if value is not None]
    numbers += [number for step, value in record.history for number in (step, value)]
    if wrong := [number for number in numbers if not isinstance(number, int | float)]:
        raise ValueError(f"a value is a {type(wrong[0]).__name__}")
    json.dumps(read, ensure_ascii=False).encode()  # what is told of it can be written
    return record
