"""One live screen for a whole sweep: overall progress with ETA, a line per running unit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hydratune.record.progress import Screen, duration
from hydratune.sweep.pool import Event


class SweepScreen(Screen):
    """What workers tell. Where the output is no terminal, a line per finished job."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done = self._total = 0
        self._started = 0.0
        self._quiet = False

    @contextmanager
    def running(self, jobs: int, seconds: float | None, quiet: bool = False) -> Iterator[None]:
        """jobs: how many; seconds: expected, where that is known."""
        self._done, self._total, self._started, self._quiet = 0, jobs, time.monotonic(), quiet
        if not quiet:
            self.line(f"{jobs} jobs" + (f", about {duration(seconds)}" if seconds else ""))
        if not self.console.is_terminal or quiet:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[seen]}"),
        )
        self._bar = Progress(*columns, console=self.console)
        self._tasks = {"": self._bar.add_task("jobs", total=jobs, seen="")}
        try:
            with self._bar:
                yield
        finally:
            self._bar = None

    def heard(self, event: Event) -> None:
        message, unit = event.message, event.unit
        if "line" in message and not self._quiet:
            self.line(message["line"])
        if "step" in message and self._bar is not None:
            if unit.name not in self._tasks:
                self._tasks[unit.name] = self._bar.add_task(unit.name, total=message["total"], seen="")
            seen = "  ".join(f"{k} {v}" for k, v in message["seen"].items())
            self._bar.update(self._tasks[unit.name], completed=message["step"], seen=seen)
        if "number" in message and "again" not in message:
            self._finished(event)
        if event.died is not None and self._bar is not None and unit.name in self._tasks:
            self._bar.remove_task(self._tasks.pop(unit.name))

    def _finished(self, event: Event) -> None:
        self._done += 1
        if self._quiet:
            return
        message = event.message
        name = next(e.name for e in event.unit.entries if e.number == message["number"])
        failed = message.get("failed")
        said = (
            f"failed: {failed}" if failed is not None else f"{message.get('status') or 'done'}  {message['metric']:.4f}"
        )
        spent = time.monotonic() - self._started
        eta = "" if self._bar is not None else f"  eta {duration(spent / self._done * (self._total - self._done))}"
        self.line(f"[{self._done}/{self._total}] {name}  {said}{eta}")
        if self._bar is not None:
            self._bar.update(self._tasks[""], completed=self._done)
