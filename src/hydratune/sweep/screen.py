"""One live screen for a whole sweep: overall progress with ETA, a line per running unit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from hydratune.core.markdown import as_shown
from hydratune.record.screen import Screen, duration, joined, plain_column
from hydratune.sweep.pool import Event

SILENCE = 30.0  # seconds after which a log file is told how far the sweep is, where no job has ended meanwhile


class SweepScreen(Screen):
    """What workers tell. Where the output is no terminal, a line per finished job."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begin(0, quiet=False)

    def _begin(self, jobs: int, quiet: bool) -> None:
        self._total, self._done, self._quiet = jobs, 0, quiet
        self._started = self._told = time.monotonic()
        self._ended: dict[str, int] = {}  # jobs of a unit that are through
        self._parts: dict[str, float] = {}  # how many of a unit's jobs its steps amount to

    @contextmanager
    def running(self, jobs: int, seconds: float | None, quiet: bool = False) -> Iterator[None]:
        """jobs: how many; seconds: expected, where that is known."""
        self._begin(jobs, quiet)
        if not quiet:
            self.line(f"{jobs} jobs" + (f", about {duration(seconds)}" if seconds else ""))
        if not self.console.is_terminal or quiet:
            yield
            return
        columns = (
            plain_column("{task.description}"),
            BarColumn(bar_width=24),
            plain_column("{task.fields[count]}"),
            TimeRemainingColumn(),
            plain_column("{task.fields[seen]}"),
        )
        self._bar = Progress(*columns, console=self.console)
        self._tasks = {"": self._bar.add_task("jobs", total=jobs, count=self._count(), seen="")}
        try:
            with self._bar:
                yield
        finally:
            self._bar = None

    def more(self, jobs: int) -> None:
        """So many more have something to do."""
        self._total += jobs
        if self._bar is not None:
            self._bar.update(self._tasks[""], total=self._total, count=self._count())

    def heard(self, event: Event) -> None:
        message, unit = event.message, event.unit
        if "line" in message and not self._quiet:
            self.line(message["line"])
        if "step" in message:
            first, step, total = message["first"], message["step"], message["total"]
            self._parts[unit.name] = len(unit.entries) * (step - first) / max(total - first, 1)
            self._stepped(unit.name, step, total, joined(message["seen"]))
        if "number" in message and "again" not in message:
            self._finished(event)
        if event.died is not None and self._bar is not None and unit.name in self._tasks:
            self._bar.remove_task(self._tasks.pop(unit.name))

    def _progress(self) -> float:
        """How many jobs what was done amounts to: those that are through, and the steps of those that run."""
        units = self._parts.keys() | self._ended.keys()
        return min(sum(max(self._parts.get(u, 0.0), self._ended.get(u, 0)) for u in units), self._total)

    def _count(self) -> str:
        """Jobs side by side end together: how far they are says more than how many are through."""
        share = self._progress() / self._total if self._total else 0.0
        return f"{self._done}/{self._total} jobs, {math.floor(100 * share)}% of their steps"

    def _eta(self) -> str:
        progress, spent = self._progress(), time.monotonic() - self._started
        return duration(spent * (self._total - progress) / progress) if progress else "unknown"

    def _stepped(self, name: str, step: int, total: int, seen: str) -> None:
        if self._bar is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(as_shown(name), total=total, count="", seen="")
            self._bar.update(self._tasks[name], completed=step, count=f"{step}/{total}", seen=seen)
            self._bar.update(self._tasks[""], completed=self._progress(), count=self._count())
        elif not self._quiet and time.monotonic() > self._told + SILENCE:
            self._told = time.monotonic()
            whole = f"[{self._count()}] " if self._total else ""  # a pretraining comes before all jobs
            eta = f"  eta {self._eta()}" if self._total else ""
            self.line(f"{whole}{name}  step {step}/{total}  {seen}{eta}")

    def _finished(self, event: Event) -> None:
        self._done += 1
        message, unit = event.message, event.unit
        self._ended[unit.name] = self._ended.get(unit.name, 0) + 1
        if self._quiet:
            return
        name = next(e.name for e in unit.entries if e.number == message["number"])
        failed = message.get("failed")
        said = (
            f"failed: {failed}" if failed is not None else f"{message.get('status') or 'done'}  {message['metric']:.4f}"
        )
        self._told = time.monotonic()
        eta = "" if self._bar is not None else f"  eta {self._eta()}"
        self.line(f"[{self._done}/{self._total}] {name}  {said}{eta}")
        if self._bar is not None:
            self._bar.update(self._tasks[""], completed=self._progress(), count=self._count())
