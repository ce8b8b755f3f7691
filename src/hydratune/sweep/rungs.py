"""A rung of successive halving: how the jobs stand there, and which of them end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hydratune.record.run import write_record
from hydratune.record.run_record import RunRecord
from hydratune.sweep import halving, ranking
from hydratune.sweep.plan import Entry


def stopped(entries: Sequence[Entry], halt: float, factor: int) -> Mapping[int, str]:
    """By their numbers the entries that end at this share of their steps, and why; their records say so."""
    standings = []
    for entry in entries:
        record = RunRecord.read(entry.directory)
        value = ranking.value_at(record, halt)
        assert entry.job is not None and value is not None and record.num_steps is not None
        cell = json.dumps([[k, v] for k, v in sorted(entry.varies.items()) if k != "seed"])
        last = halt * record.num_steps > (record.last_phase or 0)
        standings.append(halving.Standing(entry.number, cell, entry.job.choices.get("freeze", ""), value, last))
    out = halving.goes_on(standings, factor)
    for entry in entries:
        record = RunRecord.read(entry.directory)
        if entry.number in out and record.status != "complete":
            why = f"{out[entry.number]}, at {halt:.0%} of its steps"
            write_record(entry.directory, record.changed(status="stopped", stopped=why))
    return out
