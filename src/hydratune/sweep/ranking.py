"""A sweep's directory as a table: read from its run directories at any time, also while they run."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydratune.core.markdown import harmless, in_markdown, markdown_table, number
from hydratune.record.run import write_text
from hydratune.record.run_record import RunRecord
from hydratune.sweep.comparison import Comparison, compared, winning
from hydratune.sweep.grid import FOLD, NO_FOLD, REPLICATES
from hydratune.sweep.rows import SWEEP as SWEEP
from hydratune.sweep.rows import Row, read_rows, read_sweep

ORDER = (
    "complete",
    "soup",
    "interpolated",
    "running",
    "paused",
    "stopped",
    "interrupted",
    "failed",
    "unreadable",
    "waiting",
)


MADE = ("soup", "interpolated")  # by no job's training


@dataclass(frozen=True)
class Cell:
    """Jobs that differ by seed and fold alone."""

    settings: tuple[tuple[str, str], ...]
    rows: Sequence[Row]
    mean: float
    deviation: float  # over them; NaN for one
    sampling: float | None  # standard error of one run's value that the size of the validation split alone gives

    @property
    def strategy(self) -> str:
        return self.rows[0].strategy


@dataclass(frozen=True)
class Ranking:
    monitor: str
    split: str  # of which the monitor selects: val, or an evaluation set
    keys: Sequence[str]  # what varies
    rows: Sequence[Row]  # the best first; failed ones last
    cells: Sequence[Cell]  # of complete jobs, the best first

    @property
    def label(self) -> str:
        return f"{self.split} {self.monitor}"

    @property
    def others(self) -> list[str]:
        """Names of the further sets that jobs were evaluated on; validation is one where another set selects."""
        end = f"_{self.monitor}"
        named = [key.removesuffix(end) for r in self.rows for key in r.record.metrics or {} if key.endswith(end)]
        return [name for name in dict.fromkeys(named) if name not in (self.split, "test")]

    @property
    def winner(self) -> Row | None:
        """The best run of the best cell."""
        return max(self.cells[0].rows, key=lambda r: r.value) if self.cells else None

    def against_best(self, cell: Cell) -> Comparison:
        best = self.cells[0]
        own, other = ({r.replicate: r.value for r in c.rows} for c in (cell, best))
        known = cell.sampling is not None and best.sampling is not None
        sampling = math.hypot(cell.sampling or 0, best.sampling or 0) if known else None
        return compared(own, other, sampling, 1 / (self.folds - 1) if self.folds > 1 else 0.0)

    @property
    def folds(self) -> int:
        """How many the jobs are of, as far as there are jobs of them."""
        return len({r.varies.get(FOLD, "") for r in self.rows}.difference(NO_FOLD))

    @property
    def over(self) -> str:
        """What the jobs of a cell differ by."""
        seeds = len({r.varies.get("seed") for r in self.rows}) > 1
        return "seeds and folds" if self.folds > 1 and seeds else "folds" if self.folds > 1 else "seeds"

    def winning(self) -> dict[str, float] | None:
        """How probable it is that each strategy is the best; None where there are too few seeds to tell."""
        strategies: dict[str, list[dict[tuple[str, ...], float]]] = {}
        for cell in self.cells:
            values = {r.replicate: r.value for r in cell.rows}
            strategies.setdefault(cell.strategy, []).append(values)
        return winning(strategies)

    def edges(self) -> list[Edge]:
        """Numeric keys whose best value lies at the end of its grid."""
        found = []
        best = dict(self.cells[0].settings) if self.cells else {}
        for key in self.keys:
            pairs = [(v, r) for r in self.rows if (v := number(r.varies.get(key))) is not None]
            values = sorted({v for v, _ in pairs})
            compared = {v for v, r in pairs if r.value == r.value}  # the others have failed
            at = number(best.get(key))
            if key not in REPLICATES and len(compared) > 1 and at in (values[0], values[-1]):
                assert at is not None
                lower = at == values[0]
                found.append(Edge(key, best[key], at, values[1] if lower else values[-2], lower))
        return found


@dataclass(frozen=True)
class Edge:
    """A key's best value, at the lower or the upper end of its grid, and the one before it."""

    key: str
    best: str
    value: float
    before: float
    lower: bool

    @property
    def beyond(self) -> str:
        """The next value in that direction: as far again, in proportion where all are above 0."""
        if min(self.value, self.before) > 0:
            following = self.value * self.value / self.before
        else:
            following = 2 * self.value - self.before
        whole = self.best.lstrip("+-").isdigit() and self.before.is_integer()
        return str(round(following)) if whole else f"{following:.10g}"

    def __str__(self) -> str:
        end, beyond = ("lower", "smaller") if self.lower else ("upper", "larger")
        return f"the best {self.key}, {self.best}, lies at the {end} edge of its grid: try {beyond} ones"


def value_at(record: RunRecord, halt: float) -> float | None:
    """The first evaluation at or after this share of a run's steps, the last of one that stopped before; else None."""
    history, due = record.history, halt * (record.num_steps or math.inf)
    found = next((value for step, value in history if step >= due - 1e-6), None)
    return history[-1][1] if found is None and history and record.status == "complete" else found


def read(directory: Path) -> Ranking:
    """Raises ValueError where no sweep has been."""
    sweep = read_sweep(directory)
    rows = sorted(read_rows(directory, sweep["jobs"]), key=_place)
    first = next((r.record for r in rows if r.record.monitor), RunRecord(monitor="metric"))
    return Ranking(first.monitor or "", first.selects or "val", sweep["keys"], rows, _cells(rows))


def _place(row: Row) -> tuple[int, float]:
    """What is complete before what is not, a soup as if it were a job; then by value."""
    status = "complete" if row.status in MADE else row.status
    return ORDER.index(status) if status in ORDER else len(ORDER), -row.value if row.value == row.value else math.inf


def _cells(rows: Sequence[Row]) -> list[Cell]:
    found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        if row.status == "complete" and row.same_as is None and row.value == row.value:
            found.setdefault(row.cell, []).append(row)
    cells = []
    for settings, group in found.items():
        values = [r.value for r in group]
        mean, samples = statistics.fmean(values), group[0].record.val_samples or 0
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        # Of a share of the samples; what other metrics are made of is not known here
        share = group[0].record.monitor == "accuracy" and 0 <= mean <= 1 and samples > 0
        cells.append(Cell(settings, group, mean, deviation, math.sqrt(mean * (1 - mean) / samples) if share else None))
    return sorted(cells, key=lambda c: -c.mean)


# ---- as tables


def job_table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): one row per job."""
    others = ranking.others
    columns = ["rank", *ranking.keys, "status", ranking.label, f"test {ranking.monitor}"]
    columns += [*(f"{name} {ranking.monitor}" for name in others), "steps", "seconds"]
    columns += ["directory", "note"]
    rows = []
    for rank, row in enumerate(ranking.rows, start=1):
        record = row.record
        tested = [record.score(name) for name in ("test", *others)]
        steps = f"{record.step or 0}/{record.num_steps}" if record.num_steps is not None else ""
        note = f"the same as {row.same_as}" if row.same_as else " ".join(row.error.split())
        rows.append(
            [
                str(rank) if row.value == row.value else "-",
                *(row.varies.get(k, "") for k in ranking.keys),
                row.status,
                f"{row.value:.4f}" if row.value == row.value else "-",
                *("" if value is None else f"{value:.4f}" for value in tested),
                steps,
                f"{record.seconds:.1f}" if record.seconds else "",
                row.directory.name,
                note,
            ]
        )
    return columns, rows


def cell_table(ranking: Ranking, cells: Sequence[Cell] | None = None) -> tuple[list[str], list[list[str]]]:
    """One row per cell: mean and standard deviation over seeds and folds, and how it compares with the best."""
    keys = [k for k in ranking.keys if k not in REPLICATES]
    rows = []
    for cell in ranking.cells if cells is None else cells:
        settings = dict(cell.settings)
        differs = "" if cell is ranking.cells[0] else str(ranking.against_best(cell))
        deviation = f"{cell.deviation:.4f}" if cell.deviation == cell.deviation else "-"
        rows.append([*(settings.get(k, "") for k in keys), f"{cell.mean:.4f}", deviation, str(len(cell.rows)), differs])
    return [*keys, ranking.label, "sd", "n", "against the best"], rows


def best_of_each(ranking: Ranking) -> list[Cell]:
    """The best cell of each strategy, the best first."""
    found: dict[str, Cell] = {}
    for cell in ranking.cells:
        found.setdefault(cell.strategy, cell)
    return list(found.values())


def strategy_table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """The best cell of each strategy and, where there are several, how probable it is that it wins."""
    cells = best_of_each(ranking)
    columns, rows = cell_table(ranking, cells)
    if len(cells) < 2:
        return columns, rows
    known = ranking.winning()
    wins = [f"{known[cell.strategy]:.0%}" if known else "too few seeds" for cell in cells]
    return [*columns, "wins"], [[*row, won] for row, won in zip(rows, wins, strict=True)]


def write_tables(directory: Path, ranking: Ranking) -> None:
    """leaderboard.csv, leaderboard.md, and in `best` the winner's name (a link would show it twice in TensorBoard)."""
    columns, rows = job_table(ranking)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([harmless(cell) for cell in row] for row in [columns, *rows])
    write_text(directory / "leaderboard.csv", out.getvalue())
    write_text(directory / "leaderboard.md", markdown(ranking))
    if ranking.winner is not None:
        write_text(directory / "best", f"{ranking.winner.directory.name}\n")


def markdown(ranking: Ranking) -> str:
    parts = [f"# Jobs, by {in_markdown(ranking.label)}", markdown_table(*job_table(ranking))]
    if ranking.cells:
        parts += [f"# Cells, over {ranking.over}", markdown_table(*cell_table(ranking))]
        parts += ["# Best of each strategy", markdown_table(*strategy_table(ranking))]
        parts += [f"**{in_markdown(str(edge))}**" for edge in ranking.edges()]
    return "\n\n".join(parts) + "\n"


def summary(ranking: Ranking) -> str:
    """How many jobs are in which state."""
    states = [r.status for r in ranking.rows]
    return f"{len(states)} jobs: {', '.join(f'{states.count(s)} {s}' for s in ORDER if s in states)}"
