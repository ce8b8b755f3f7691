"""stage=predict: a row for each input, written as it is known; what was broken off goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune.config.job import Job
from hydratune.config.validate import OWN_SPLIT
from hydratune.data.inputs import Item
from hydratune.distributed import signals
from hydratune.experiment import report
from hydratune.experiment.finish import Result
from hydratune.experiment.trained import Trained, trained
from hydratune.experiment.usage import opened, show_used
from hydratune.record.run import Run
from hydratune.record.screen import LiveLine, Screen
from hydratune.record.table import Table


@dataclass(frozen=True)
class Answered(Result):
    """unreadable: how many inputs could not be read."""

    unreadable: int = 0


def predict_job(job: Job, screen: Screen) -> Answered:
    """Raises ValueError for inputs that are none; one that cannot be read is named and left out."""
    with trained(job) as used, ExitStack() as stack:
        source, items, split = _asked_of(used)
        source.check_views(job.config.views)
        if job.config.format == "coco" and used.task.kind != "boxes":
            raise ValueError(f"format=coco: is of boxes, and this network answers {used.task.kind}; csv or jsonl")
        run = stack.enter_context(opened(job, used))
        show_used(screen, run, used)
        form, resumed = job.config.format or "csv", job.config.resume is not None
        table = stack.enter_context(Table.opened(job.directory, form, resumed))
        if table.done:
            screen.line(f"{table.done:,} of {len(items):,} inputs are done already")
        with screen.progress("predict", table.done, len(items)) as line, signals.held():
            _predict(used, source, items, split, table, line)
        path = table.finished(used.spec.class_names)
        ended = {"status": "complete", "ended": report.now(), "seconds": run.seconds}
        run.update(**ended, step=len(items))
        _show(screen, run, table, path, len(items))
        return Answered(job.directory, float("nan"), run.record, table.unreadable)


def _asked_of(used: Trained) -> tuple[Any, Sequence[Item], Any]:
    """(what makes batches, its items, the split that they are already; None: it is made of the items)"""
    asked = used.job.config.inputs
    given = [asked] if isinstance(asked, str) else list(asked or ())
    if len(given) == 1 and given[0].startswith(OWN_SPLIT):
        split = used.dataset.split(given[0].removeprefix(OWN_SPLIT))
        return used.dataset, [Item(i, {"sample": str(i)}) for i in range(len(split))], split
    if used.inputs is None:
        raise ValueError(f"inputs: {type(used.dataset).__name__} does not say how it reads them")
    return used.inputs, used.inputs.items([Path(path).expanduser() for path in given]), None


def _predict(used: Trained, source: Any, items: Sequence[Item], split: Any, table: Table, line: LiveLine) -> None:
    """In chunks of which each is written in its order. Raises Stopped where a signal asks for it."""
    size = len(items) if split is not None else source.chunk
    while table.done < len(items):
        first = table.done // size * size
        chunk = items[first : first + size]
        skip = table.done - first
        if split is None:
            chunk, first, skip = chunk[skip:], table.done, 0
        own = source.split_of(chunk) if split is None else split
        waiting = _InOrder(chunk, skip, used, source, table)
        for numbers, rows in used.predict(source, own, used.asked(source, labelled=split is not None)):
            waiting.take(numbers, rows, getattr(own, "faults", {}))
            line.show(table.done, {"inputs/s": f"{table.rate():,.0f}"})
            if (number := signals.asked()) is not None:
                table.flush()
                raise signals.Stopped(number)
    table.flush()


class _InOrder:
    """Rows come in any order and are written in that of the inputs."""

    def __init__(self, items: Sequence[Item], first: int, used: Trained, source: Any, table: Table) -> None:
        self._items, self._next, self._source, self._table = items, first, source, table
        self._rows: dict[int, dict[str, Any]] = {}

    def take(self, numbers: Sequence[int], rows: Sequence[Mapping[str, Any]], faults: Mapping[int, str]) -> None:
        for number, row in zip(numbers, rows, strict=True):
            if number >= self._next:
                self._rows[number] = {**self._items[number].columns, **row}
        while self._next in self._rows:
            row, item = self._rows.pop(self._next), self._items[self._next]
            if self._next in faults:
                self._table.leave_out(faults[self._next])
            else:
                self._table.write(self._with_picture(row, item))
            self._next += 1

    def _with_picture(self, row: dict[str, Any], item: Item) -> dict[str, Any]:
        """A mask becomes a file of its own, of the size of its image."""
        if "mask" not in row:
            return row
        picture = self._source.kept(item, row["mask"])
        return {**row, "mask": self._table.keep_picture(next(iter(item.columns.values())), picture)}


def _show(screen: Screen, run: Run, table: Table, path: Path, count: int) -> None:
    if table.counts:
        screen.table("predicted", ("answer", "inputs"), table.counts.most_common(12))
    for fault in table.faults[:8]:
        screen.line(f"left out: {fault}")
    if table.unreadable > 8:
        screen.line(f"and {table.unreadable - 8} more ({report.shown_path(run.directory / 'unreadable.txt')})")
    rows = f"{count - table.unreadable:,} of {count:,} inputs"
    screen.line(f"predictions:    {report.shown_path(path)} ({rows}, {table.rate():,.0f} a second)")
