"""A sweep's directory as a table: read from its run directories at any time, also while they run."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune.markup import in_markdown
from hydratune.record.progress import markdown_table
from hydratune.record.run import read_record, write_text

SWEEP = "sweep.json"  # what jobs the sweep has and what varies among them
ORDER = ("complete", "soup", "running", "paused", "stopped", "interrupted", "failed", "waiting")


@dataclass(frozen=True)
class Row:
    """One job as its directory tells of it."""

    directory: Path
    varies: Mapping[str, str]
    status: str
    value: float  # validation metric of the best evaluation; NaN where there is none
    record: Mapping[str, Any]
    strategy: str
    same_as: str | None = None

    @property
    def cell(self) -> tuple[tuple[str, str], ...]:
        """Its settings but for the seed."""
        return tuple(sorted((k, v) for k, v in self.varies.items() if k != "seed"))

    @property
    def error(self) -> str:
        return str(self.record.get("error") or self.record.get("stopped") or "")


@dataclass(frozen=True)
class Cell:
    """Jobs that differ by their seed alone."""

    settings: tuple[tuple[str, str], ...]
    rows: Sequence[Row]
    mean: float
    deviation: float  # over seeds; NaN for one
    noise: float  # standard error of the mean: over seeds, or of the validation sample where there is one seed

    @property
    def strategy(self) -> str:
        return self.rows[0].strategy


@dataclass(frozen=True)
class Ranking:
    monitor: str
    keys: Sequence[str]  # what varies
    rows: Sequence[Row]  # the best first; failed ones last
    cells: Sequence[Cell]  # of complete jobs, the best first

    @property
    def winner(self) -> Row | None:
        """The best run of the best cell."""
        return max(self.cells[0].rows, key=lambda r: r.value) if self.cells else None

    def beyond_noise(self, cell: Cell) -> bool:
        """Whether it differs from the best by more than twice the standard error of the difference."""
        best = self.cells[0]
        return best.mean - cell.mean > 2 * math.hypot(best.noise, cell.noise)

    def edges(self) -> list[str]:
        """A sentence per numeric key whose best value lies at the end of its grid."""
        if not self.cells:
            return []
        said = []
        best = dict(self.cells[0].settings)
        for key in self.keys:
            pairs = [(v, r) for r in self.rows if (v := number(r.varies.get(key))) is not None]
            values = sorted({v for v, _ in pairs})
            compared = {v for v, r in pairs if r.value == r.value}  # the others have failed
            at = number(best.get(key))
            if key != "seed" and len(compared) > 1 and at in (values[0], values[-1]):
                end, beyond = ("lower", "smaller") if at == values[0] else ("upper", "larger")
                said.append(f"the best {key}, {best[key]}, lies at the {end} edge of its grid: try {beyond} ones")
        return said


def number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def value_at(record: Mapping[str, Any], halt: float) -> float | None:
    """The first evaluation at or after this share of a run's steps, the last of one that stopped before; else None."""
    history, due = record.get("history") or (), halt * record.get("num_steps", math.inf)
    found = next((value for step, value in history if step >= due - 1e-6), None)
    return history[-1][1] if found is None and history and record.get("status") == "complete" else found


def read(directory: Path) -> Ranking:
    """Raises ValueError where no sweep has been."""
    path = directory / SWEEP
    if not path.is_file():
        raise ValueError(f"{directory}: no sweep has been here (it should hold {SWEEP})")
    sweep = json.loads(path.read_text())
    rows = []
    for job in sweep["jobs"]:
        home = directory / job["directory"]
        record = read_record(home)
        status = record.get("status") or ("failed" if job.get("error") else "waiting")
        if status == "running" and not _claimed(home):
            status = "interrupted"
        record = {**record, **({"error": job["error"]} if job.get("error") else {})}
        monitor = record.get("monitor", "")
        value = (record.get("metrics") or {}).get(f"val_{monitor}")
        if value is None:
            value = max((v for _, v in record.get("history") or ()), default=math.nan)
        rows.append(Row(home, job["varies"], status, value, record, job["strategy"], job.get("same_as")))
    monitor = next((r.record["monitor"] for r in rows if r.record.get("monitor")), "metric")
    rows.sort(key=_place)
    return Ranking(monitor, sweep["keys"], rows, _cells(rows))


def _place(row: Row) -> tuple[int, float]:
    """What is complete before what is not, a soup as if it were a job; then by value."""
    status = "complete" if row.status == "soup" else row.status
    return ORDER.index(status) if status in ORDER else len(ORDER), -row.value if row.value == row.value else math.inf


def _claimed(directory: Path) -> bool:
    try:
        with open(directory / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _cells(rows: Sequence[Row]) -> list[Cell]:
    found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        if row.status == "complete" and row.same_as is None:
            found.setdefault(row.cell, []).append(row)
    cells = []
    for settings, group in found.items():
        values = [r.value for r in group]
        mean, n = statistics.fmean(values), len(values)
        deviation = statistics.stdev(values) if n > 1 else math.nan
        samples = group[0].record.get("val_samples") or 1
        sampling = math.sqrt(max(mean * (1 - mean), 0.0) / samples) if 0 <= mean <= 1 else 0.0
        cells.append(Cell(settings, group, mean, deviation, deviation / math.sqrt(n) if n > 1 else sampling))
    return sorted(cells, key=lambda c: -c.mean)


# ---- as tables


def job_table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): one row per job."""
    columns = ["rank", *ranking.keys, "status", f"val {ranking.monitor}", f"test {ranking.monitor}", "steps", "seconds"]
    columns += ["directory", "note"]
    rows = []
    for rank, row in enumerate(ranking.rows, start=1):
        record, tested = row.record, (row.record.get("metrics") or {}).get(f"test_{ranking.monitor}")
        steps = f"{record.get('step', 0)}/{record['num_steps']}" if "num_steps" in record else ""
        if row.status == "complete" and record.get("stopped"):
            note = str(record["stopped"])
        else:
            note = row.error if row.status != "complete" else ""
        note = f"the same as {row.same_as}" if row.same_as else note
        rows.append(
            [
                str(rank) if row.value == row.value else "-",
                *(row.varies.get(k, "") for k in ranking.keys),
                row.status,
                f"{row.value:.4f}" if row.value == row.value else "-",
                f"{tested:.4f}" if tested is not None else "",
                steps,
                f"{record['seconds']:.1f}" if record.get("seconds") else "",
                row.directory.name,
                note,
            ]
        )
    return columns, rows


def cell_table(ranking: Ranking, cells: Sequence[Cell] | None = None) -> tuple[list[str], list[list[str]]]:
    """One row per cell: mean and standard deviation over its seeds."""
    keys = [k for k in ranking.keys if k != "seed"]
    rows = []
    for cell in ranking.cells if cells is None else cells:
        settings = dict(cell.settings)
        differs = "" if cell is ranking.cells[0] else ("worse" if ranking.beyond_noise(cell) else "within the noise")
        deviation = f"{cell.deviation:.4f}" if cell.deviation == cell.deviation else "-"
        rows.append([*(settings.get(k, "") for k in keys), f"{cell.mean:.4f}", deviation, str(len(cell.rows)), differs])
    return [*keys, f"val {ranking.monitor}", "sd", "n", "against the best"], rows


def best_of_each(ranking: Ranking) -> list[Cell]:
    """The best cell of each strategy, the best first."""
    found: dict[str, Cell] = {}
    for cell in ranking.cells:
        found.setdefault(cell.strategy, cell)
    return list(found.values())


def write_tables(directory: Path, ranking: Ranking) -> None:
    """leaderboard.csv, leaderboard.md, and in `best` the winner's name (a link would show it twice in TensorBoard)."""
    columns, rows = job_table(ranking)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    write_text(directory / "leaderboard.csv", out.getvalue())
    write_text(directory / "leaderboard.md", markdown(ranking))
    if ranking.winner is not None:
        write_text(directory / "best", f"{ranking.winner.directory.name}\n")


def markdown(ranking: Ranking) -> str:
    parts = [f"# Jobs, by validation {in_markdown(ranking.monitor)}", markdown_table(*job_table(ranking))]
    if ranking.cells:
        parts += ["# Cells, over seeds", markdown_table(*cell_table(ranking))]
        parts += ["# Best of each strategy", markdown_table(*cell_table(ranking, best_of_each(ranking)))]
        parts += [f"**{in_markdown(warning)}**" for warning in ranking.edges()]
    return "\n\n".join(parts) + "\n"


def summary(ranking: Ranking) -> str:
    """How many jobs are in which state."""
    states = [r.status for r in ranking.rows]
    return f"{len(states)} jobs: {', '.join(f'{states.count(s)} {s}' for s in ORDER if s in states)}"
