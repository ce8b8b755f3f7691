"""Worker processes, each forked from one that has imported everything once; what they say, and when they die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hydratune.core.secrets import hidden
from hydratune.sweep import worker
from hydratune.sweep.forkserver import context
from hydratune.sweep.plan import Unit


@dataclass(frozen=True)
class Places:
    """How many workers run at a time, on how many cores and GPUs."""

    count: int
    cores: int
    gpus: int = 0

    @staticmethod
    def of(jobs: int | str) -> Places:
        """auto: one per GPU, else as many as there are cores."""
        import torch

        gpus = torch.cuda.device_count()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Places((gpus or cores) if jobs == "auto" else int(jobs), cores, gpus)

    def threads(self, units: int | None = None) -> int | None:
        """Of each worker, where all run or `units` of them; None, which leaves torch's own, where GPUs compute."""
        count = self.count if units is None else max(min(self.count, units), 1)
        return None if self.gpus else max(self.cores // count, 1)

    def at_once(self, threads: int | None) -> int:
        """How many workers of so many threads there is room for."""
        return self.count if threads is None else max(min(self.count, self.cores // threads), 1)


@dataclass(frozen=True)
class Event:
    """A message of a unit's worker, or its end: `died` is then its exit code, negative for a signal."""

    unit: Unit
    message: dict[str, Any]
    died: int | None = None


def ending(code: int) -> str:
    """What the exit code of a worker that died means."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with exit code {code}"


class Pool:
    """Runs units, as many at a time as there are places and cores for. Leaving it stops those that still run."""

    def __init__(self, logs: Path) -> None:
        self._context = context()
        self._logs = logs
        self._running: dict[Connection, tuple[BaseProcess, Unit, int]] = {}
        self._started = 0

    def run(self, mode: str, units: Sequence[Unit], places: Places, until: float | None = None) -> Iterator[Event]:
        """Events as they come. What is appended to `units` while it runs is run as well.

        until: of time.monotonic(), when all that still runs is stopped.
        """
        queue, added = deque(units), len(units)
        free = list(range(places.count))
        done: set[Connection] = set()  # workers that said themselves that they are through
        try:
            while True:
                queue.extend(units[added:])
                added = len(units)
                while queue and free and self._fits(queue[0], places):
                    self._start(mode, queue.popleft(), free.pop(0), places)
                if not self._running:
                    return
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return
                for connection in wait(list(self._running), left):
                    assert isinstance(connection, Connection)
                    process, unit, place = self._running[connection]
                    try:
                        message = json.loads(connection.recv_bytes())
                    except (EOFError, OSError):
                        process.join()
                        del self._running[connection]
                        connection.close()
                        free.append(place)
                        # without the process that it was forked from nobody knows its exit code
                        yield Event(unit, {}, 0 if connection in done else process.exitcode)
                        done.discard(connection)
                        continue
                    if "done" in message:
                        done.add(connection)
                    else:
                        yield Event(unit, message)
        finally:
            self.stop()

    def _fits(self, unit: Unit, places: Places) -> bool:
        """Whether its threads find cores that are free: with more threads than cores, all wait for one another."""
        taken = sum(running.threads or 0 for _, running, _ in self._running.values())
        return not self._running or taken + (unit.threads or 0) <= places.cores

    def log_of(self, unit: Unit) -> str:
        """The end of what the unit's worker printed."""
        path = self._log(unit)
        return hidden(path.read_text(errors="replace"))[-4000:] if path.exists() else ""

    def stop(self) -> None:
        """End what runs, within seconds; their last checkpoints stay."""
        processes = [process for process, _, _ in self._running.values()]
        for patience in (1.5, 2.5):  # asked again: Python drops an exception that meets it in a destructor
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + patience
            for process in processes:
                process.join(max(deadline - time.monotonic(), 0.0))
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        self._running.clear()

    def kill(self) -> None:
        """End what runs, at once."""
        for process, _, _ in list(self._running.values()):
            process.kill()

    def close(self) -> None:
        """Nothing more will be run."""
        self.stop()

    def _log(self, unit: Unit) -> Path:
        return self._logs / f"unit-{unit.entries[0].number}.log"

    def _start(self, mode: str, unit: Unit, place: int, places: Places) -> None:
        ours, theirs = self._context.Pipe()
        jobs = json.dumps([(e.number, e.job.as_json()) for e in unit.entries if e.job is not None], default=str)
        self._logs.mkdir(parents=True, exist_ok=True)
        gpu = place % places.gpus if places.gpus else None
        arguments = (mode, jobs, theirs, str(self._log(unit)), unit.threads, gpu)
        process = self._context.Process(target=worker.main, args=arguments)
        process.start()
        theirs.close()
        self._running[ours] = process, unit, place
