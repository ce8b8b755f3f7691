"""What a sweep costs beside its training: jobs of one step on generated pictures, and where their time goes.

    python scripts/bench/overhead.py [--only jobs units] [--jobs 50 250 500] [--rounds 3] [--results FILE.jsonl]

jobs: one command with so many jobs. Seconds and CPU seconds a job, of all processes; composing (until every job is
known and told apart), planning (until the first one is handed out), workers, reporting (tables, report, the winner);
peak memory of the command.
units: 24 jobs on the pool of this machine, and the same through one hydratune-work and a shared directory; seconds a
job from the first one's end to the last one's, one at a time in both.

Nothing is tested, and precision is not probed. With --results rows are kept, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hydratune.distributed.runtime import cpu_name

PARTS = ("composing", "planning", "workers", "reporting")
UNITS = 24
SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: grandchildren whose parent has ended are ours, and so is their time


def command(jobs: int, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "hydratune", "-m", "stage=pretrain", "model=mlp", "dataset.train=200", "dataset.val=100",
        "dataset.test=100", "steps=1", "test=false", "runtime.precision=fp32", "runtime.layout=contiguous",
        f"seed={','.join(map(str, range(jobs)))}", "hydra.sweep.dir=sweep", *more,
    ]  # fmt: skip


class Watch:
    """A running command as seen from outside: when its files come, what it prints, how much memory it has."""

    def __init__(self, line: list[str], home: Path) -> None:
        self.began = time.perf_counter()
        self.errors = (home / "errors").open("w+")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            line, cwd=home, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self.marks: dict[str, float] = {}
        self.ends: list[float] = []  # of the jobs
        self.memory = 0.0  # MB
        self._files = {"parsed": home / "sweep" / "multirun.yaml", "composed": home / "sweep" / "sweep.json"}
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            for name, path in self._files.items():
                if name not in self.marks and path.exists():
                    self.marks[name] = self._now()
            try:
                if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
                    self.memory = int(found[1]) / 1024
            except OSError:
                return
            time.sleep(0.02)

    def _now(self) -> float:
        return time.perf_counter() - self.began

    def wait(self) -> float:
        """Seconds until it has ended. Raises AssertionError where it failed."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if re.match(r"\d+ jobs$", line):
                self.marks["planned"] = self._now()
            elif re.match(r"\[\d+/\d+\]", line):
                self.ends.append(self._now())
        code, elapsed = self.process.wait(), self._now()
        self.errors.seek(0)
        assert code == 0, self.errors.read()[-3000:]
        return elapsed


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    while True:
        try:
            if os.waitpid(-1, 0)[0] == 0:
                break
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one_sweep(jobs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        before = cpu_seconds()
        watch = Watch(command(jobs), Path(place))
        elapsed = watch.wait()
        found = len(list(Path(place).glob("sweep/*/run.json")))
        assert found == jobs == len(watch.ends), (found, len(watch.ends))
        marks = [watch.marks["parsed"], watch.marks["composed"], watch.marks["planned"], watch.ends[-1], elapsed]
        parts = [(b - a) / jobs for a, b in pairwise(marks)]
        cpu = cpu_seconds() - before
        return {
            "seconds": elapsed / jobs,
            "cpu": cpu / jobs,
            **dict(zip(PARTS, parts, strict=True)),
            "MB": watch.memory,
        }


def pool() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(command(UNITS, "sweep.jobs=1"), Path(place))
        watch.wait()
        return _between(watch)


def shared() -> dict[str, float]:
    """The same by a worker that was started before the command."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "sweep").mkdir()
        line = [sys.executable, "-m", "hydratune.sweep.work", "sweep", "--jobs", "1", "--wait", "120"]
        with (home / "worker").open("w") as said:
            worker = subprocess.Popen(line, cwd=home, stdout=said, stderr=said)
            watch = Watch(command(UNITS, "sweep.on=workers", "sweep.jobs=1", "runtime.threads=1"), home)
            watch.wait()
            assert worker.wait() == 0, (home / "worker").read_text()[-2000:]
        return _between(watch)


def _between(watch: Watch) -> dict[str, float]:
    assert len(watch.ends) == UNITS
    return {"seconds": (watch.ends[-1] - watch.ends[0]) / (UNITS - 1)}


class Rows:
    """What was measured, kept in a file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known = [json.loads(line) for line in path.read_text().splitlines()] if path and path.is_file() else []

    def measured(self, what: str, turn: int, measure: Callable[[], dict[str, float]]) -> None:
        if any(row["what"] == what and row["turn"] == turn for row in self.known):
            return
        before = os.getloadavg()[0]
        row = {"what": what, "turn": turn, "load": round(before, 2), "machine": cpu_name(), **measure()}
        self.known.append(row)
        print(json.dumps(row), flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(f"{json.dumps(row)}\n")

    def of(self, what: str, key: str) -> list[float]:
        return [row[key] for row in self.known if row["what"] == what and key in row]


def show(rows: Rows, names: list[str], columns: tuple[str, ...], title: str) -> None:
    table = Table(title=f"{title}: median (smallest to largest); {cpu_name()}, {os.cpu_count()} cores")
    for column in ("what", *columns, "load before"):
        table.add_column(column)
    for name in names:
        table.add_row(name, *(said(rows.of(name, column)) for column in columns), said(rows.of(name, "load")))
    Console(width=180).print(table)


def said(values: list[Any]) -> str:
    if not values:
        return ""
    digits = 0 if min(values) > 20 else 3
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=["jobs", "units"], choices=["jobs", "units"])
    parser.add_argument("--jobs", nargs="+", type=int, default=[50, 250, 500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    rows = Rows(options.results)
    print(f"{' '.join(sys.argv)}; {cpu_name()}, {os.cpu_count()} cores", flush=True)
    for turn in range(options.rounds):
        if "jobs" in options.only:
            for jobs in options.jobs:
                rows.measured(f"{jobs} jobs", turn, lambda jobs=jobs: one_sweep(jobs))  # type: ignore[misc]
        if "units" in options.only:
            rows.measured("pool", turn, pool)
            rows.measured("hydratune-work", turn, shared)
    if "jobs" in options.only:
        names = [f"{jobs} jobs" for jobs in options.jobs]
        show(rows, names, ("seconds", "cpu", *PARTS, "MB"), "seconds a job, and MB of the command")
    if "units" in options.only:
        show(rows, ["pool", "hydratune-work"], ("seconds",), f"seconds a further unit, of {UNITS}, one at a time")


if __name__ == "__main__":
    main()
