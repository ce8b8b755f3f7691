"""sweep.budget where a machine is slower than it was foretold: the time is still used, and something comes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hydratune.record.run import write_record
from hydratune.record.run_record import RunRecord
from hydratune.sweep import rungs
from hydratune.sweep.budget import since_start
from hydratune.sweep.course import Course
from hydratune.sweep.plan import Entry
from hydratune.sweep.runner import SweepRunner
from hydratune.sweep.settings import SweepSettings
from tests.test_halving import entry


def at(job: Entry, step: int, value: float) -> Entry:
    """Its last evaluation."""
    job.directory.mkdir(parents=True, exist_ok=True)
    write_record(job.directory, RunRecord(status="stopped", history=[[1, 0.1], [step, value]], num_steps=90))
    return job


def test_the_cell_that_has_come_furthest_goes_on_with_all_its_seeds(tmp_path: Path) -> None:
    one = [at(entry(0, tmp_path, seed="1", lr="1"), 9, 0.9), at(entry(1, tmp_path, seed="2", lr="1"), 3, 0.9)]
    two = [at(entry(2, tmp_path, seed="1", lr="2"), 6, 0.5), at(entry(3, tmp_path, seed="2", lr="2"), 6, 0.4)]
    three = [at(entry(4, tmp_path, seed="1", lr="3"), 6, 0.4), at(entry(5, tmp_path, seed="2", lr="3"), 6, 0.4)]
    never = [entry(6, tmp_path, lr="4")]
    assert rungs.furthest([*one, *three, *two, *never]) == two
    assert rungs.furthest(never) == never and rungs.furthest([]) == []


class Late:
    """Two halts on the way, and nobody comes to the first one in time."""

    halts: Sequence[float] = (0.1, 0.3)

    def factor(self, halt: float, entries: Sequence[Entry]) -> float:
        raise AssertionError("nobody is there to be compared")

    def until(self, halt: float | None) -> float | None:
        return 1.0 if halt is not None else 2.0

    def costs(self, halt: float | None) -> Mapping[int, Any] | None:
        return None


class Recording(SweepRunner):
    def _course_of(self, todo: Sequence[Entry]) -> Course:
        return Late()

    def _train(
        self, entries: Sequence[Entry], until: float | None = None, known: Mapping[int, Any] | None = None
    ) -> None:
        with (self.directory / "asked").open("a") as file:
            file.write(f"{[e.number for e in entries]} {until}\n")
        if until == 1.0:
            self.outcomes[0] = "failed: it is not among them"


def test_the_rest_of_the_time_is_one_cells_where_nobody_came_to_a_halt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = Recording(tmp_path, SweepSettings(on="workers", budget="1m"), False, [])
    jobs = [at(entry(i, tmp_path, lr=str(i)), 12 - i, 0.5) for i in range(3)]
    runner._in_step(jobs)
    assert (tmp_path / "asked").read_text().splitlines() == ["[0, 1, 2] 1.0", "[1] 2.0"]
    said = capsys.readouterr().out
    assert "no job has come to 10% of its steps in time" in said and replace(jobs[1]).name in said


def test_the_time_before_the_first_line_of_ours_counts() -> None:
    code = "import time; time.sleep(0.4); from hydratune.sweep.budget import since_start; print(since_start())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.4 <= float(done.stdout) + 0.02 <= time.monotonic() - began + 0.1
    assert since_start() >= time.process_time() - 0.1
