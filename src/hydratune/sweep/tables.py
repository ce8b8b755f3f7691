"""The plan of a sweep as a table: jobs, what each shares with which, what it is expected to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydratune.record.screen import Screen, duration
from hydratune.sweep.arrange import makespan
from hydratune.sweep.estimate_costs import seconds_of, seconds_together
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Places


def show_plan(
    screen: Screen, entries: Sequence[Entry], units: Sequence[Unit], places: Places, costs: Mapping[int, Any]
) -> None:
    """costs: by the number of the job, as `survey` gives them."""
    where = {e.number: (i, unit) for i, unit in enumerate(units, start=1) for e in unit.entries}
    rows, together, apart = [], [], []
    for entry in entries:
        cost = costs.get(entry.number, {})
        if entry.error is not None or "error" in cost:
            rows.append((entry.number, entry.name, "", entry.error or cost["error"], ""))
        elif entry.same_as is not None:
            rows.append((entry.number, entry.name, "", "asks for the very same as another job: runs once", ""))
        elif entry.number not in where:
            rows.append((entry.number, entry.name, "", "done already", ""))
        else:
            number, unit = where[entry.number]
            seconds = duration(seconds_of(cost)) if cost else ""
            rows.append((entry.number, entry.name, str(number), _shares(entry, unit, costs), seconds))
    screen.table("jobs", ("job", "directory", "worker's unit", "shares", "alone about"), rows)
    for unit in units:
        known = [costs.get(e.number, {}) for e in unit.entries]
        together.append(seconds_together(known))
        apart.append(sum(map(seconds_of, known)))
    if units:
        gain = f", {sum(apart) / sum(together):.2f} times as fast as one by one" if sum(together) else ""
        most = max(u.threads or 0 for u in units)
        threads = f"{most} thread{'s' * (most > 1)} each" if most else "a GPU each"
        count = places.at_once(most or None)
        screen.line(f"{count} at a time, {threads}: about {duration(makespan(units, places, costs))}{gain}")
    screen.line("dry run: nothing is trained or written")


def _shares(entry: Entry, unit: Unit, costs: Mapping[int, Any]) -> str:
    others = [e.number for e in unit.entries if e is not entry]
    if not others:
        return "nothing"
    fork = costs.get(entry.number, {}).get("fork", 0)
    shared = [n for n in others if fork and costs.get(n, {}).get("fork", 0)]
    message = f"data and batches with {_listed(others)}"
    if shared:
        name = costs[entry.number]["fork_name"]
        message += f"; the trunk below {name} with {_listed(shared)}"
    return message


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return shown + (f" and {len(numbers) - 6} more" if len(numbers) > 6 else "")
