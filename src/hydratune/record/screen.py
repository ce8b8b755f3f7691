"""What a person sees: one live line while training, tables for reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from hydratune.core.markdown import as_shown

LONG = 300  # rows of a table that are shown without lines


class Screen:
    """The terminal. Where the output is no terminal, a plain line per evaluation instead of a live one."""

    def __init__(self, file: IO[str] | None = None, quiet: bool = False) -> None:
        """file: in place of the standard output. quiet: another process says it."""
        out = file or sys.stdout
        width = None if out.isatty() else 160  # a log file has room; a terminal has what it has
        # All that is shown is text: names and errors of others may hold what rich would take for its markup.
        self.console = Console(file=out, highlight=False, markup=False, emoji=False, width=width, quiet=quiet)

    def quieter(self, quiet: bool) -> Screen:
        """One that shows nothing of what has been shown before, or this one."""
        return Screen(self.console.file, quiet=True) if quiet else self

    def line(self, text: str) -> None:
        self.console.print(as_shown(text), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        shown = [[as_shown(str(cell)) for cell in row] for row in rows]
        if len(shown) > LONG:
            self._columns(title, columns, shown)
            return
        table = Table(title=as_shown(title), title_justify="left", title_style="bold", header_style="bold")
        for i, column in enumerate(columns):
            table.add_column(as_shown(column), justify="left" if i == 0 else "default", overflow="fold")
        for row in shown:
            table.add_row(*row)
        self.console.print(table)

    def _columns(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A long table without lines: rich would take seconds for it."""
        every = [list(map(as_shown, columns)), *rows]
        widths = [max(map(len, cells)) for cells in zip(*every, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in every]
        self.console.out(as_shown(title), *lines, sep="\n", highlight=False)

    def progress(self, label: str, first: int, total: int) -> LiveLine:
        return LiveLine(self, label, first, total)


class LiveLine:
    """A progress bar with ETA, loss, metric and throughput."""

    def __init__(self, screen: Screen, label: str, first: int, total: int) -> None:
        self._screen, self._label, self._first, self._total = screen, label, first, total
        self._started = time.perf_counter()
        self._bar: Progress | None = None
        if screen.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(), plain_column("{task.description}"), BarColumn(bar_width=24),
                plain_column("{task.completed}/{task.total}"), TimeRemainingColumn(),
                plain_column("{task.fields[seen]}"), console=screen.console,
            )  # fmt: skip
            self._task = self._bar.add_task(as_shown(label), total=total, completed=first, seen="")

    def __enter__(self) -> LiveLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, seen: Mapping[str, str]) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, seen=joined(seen))

    def milestone(self, step: int, seen: Mapping[str, str]) -> None:
        """An evaluation: kept on screen where there is no live line."""
        if self._bar is not None:
            self.show(step, seen)
            return
        elapsed = time.perf_counter() - self._started
        eta = elapsed / max(step - self._first, 1) * (self._total - step)
        self._screen.line(f"{self._label}  step {step}/{self._total}  {joined(seen)}  eta {duration(eta)}")


def plain_column(template: str) -> TextColumn:
    return TextColumn(template, markup=False)


def joined(seen: Mapping[str, str]) -> str:
    """The values of the live line."""
    return as_shown("  ".join(f"{k} {v}" for k, v in seen.items()))


def duration(seconds: float) -> str:
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
