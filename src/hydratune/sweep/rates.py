"""The learning rates of a sweep, strategy by strategy: which is the best, which diverge, and which to try at length.

Smith 2015 (arXiv 1506.01186) lets one rate rise through a run; here every rate has a short run of its own from the same
start, so that none has what the others left behind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hydratune.core.markdown import number
from hydratune.sweep.ranking import Ranking
from hydratune.sweep.rows import Row

LR = "optimizer.lr"
FEWEST = 5  # rates that make a range
BLOWN_UP = 4.0  # a loss this many times the lowest is no longer learning: where fastai's and Lightning's finders end
BELOW, ABOVE = 10.0, 3.2  # a range reaches a decade below the best rate, and about half a decade above it


@dataclass(frozen=True)
class Point:
    """One rate of one strategy: means over seeds of the best of what varies besides; NaN where there is no such."""

    rate: float
    typed: str
    loss: float
    value: float  # of the monitor
    finite: bool  # whether no job of it ended for a loss that was not


@dataclass(frozen=True)
class Course:
    """A strategy's rates, ascending."""

    strategy: str
    points: Sequence[Point]

    @property
    def by_loss(self) -> bool:
        """Whether losses are known, which tell more after a few steps than a share of right answers does."""
        return any(math.isfinite(p.loss) for p in self.points)

    @property
    def best(self) -> Point | None:
        finite = [p for p in self.points if p.finite]
        if self.by_loss:
            return min((p for p in finite if math.isfinite(p.loss)), key=lambda p: p.loss, default=None)
        return max((p for p in finite if p.value == p.value), key=lambda p: p.value, default=None)

    @property
    def end(self) -> Point | None:
        """The first rate above the best one that diverges; the first of all where none does not."""
        best = self.best
        above = [p for p in self.points if best is None or p.rate > best.rate]
        limit = BLOWN_UP * best.loss if best is not None and self.by_loss and best.loss > 0 else math.inf
        return next((p for p in above if not p.finite or p.loss > limit), None)

    @property
    def last(self) -> Point | None:
        """The last rate before that one, or the last of all."""
        end = self.end
        return max((p for p in self.points if end is None or p.rate < end.rate), key=lambda p: p.rate, default=None)

    @property
    def suggested(self) -> list[Point]:
        """Rates to try at length, of those that were tried and did not diverge.

        A few steps favour rates that are high for a long run, so that more of them lie below the best than above.
        """
        best, end = self.best, self.end
        if best is None:
            return []
        low, high = best.rate / BELOW * 0.999, best.rate * ABOVE
        return [p for p in self.points if low <= p.rate <= high and (end is None or p.rate < end.rate) and p.finite]


def courses(ranking: Ranking) -> list[Course]:
    """One for each strategy; none where the sweep has no range of rates."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in ranking.rows:
        rate = number(row.varies.get(LR))
        if rate is not None and rate > 0 and row.same_as is None:
            found.setdefault(row.strategy, {}).setdefault(rate, []).append(row)
    return [
        Course(strategy, points)
        for strategy, by_rate in sorted(found.items())
        if len(points := [p for rate, rows in sorted(by_rate.items()) if (p := _point(ranking, rate, rows))]) >= FEWEST
    ]


def _point(ranking: Ranking, rate: float, rows: Sequence[Row]) -> Point | None:
    """None where no job of it has come to an end."""
    known = [r for r in rows if r.status == "complete"]
    lost = any(r.status == "failed" and r.record.nonfinite is not None for r in rows)
    if not known and not lost:
        return None
    cells: dict[object, list[Row]] = {}
    for row in known:
        cells.setdefault(row.cell, []).append(row)
    key, every = f"{ranking.split}_loss", list(cells.values())
    loss = _least([[(r.record.metrics or {}).get(key, math.nan) for r in cell] for cell in every])
    value = -_least([[-r.value for r in cell] for cell in every])
    return Point(rate, rows[0].varies[LR], loss, value, not lost and (math.isfinite(loss) or math.isfinite(value)))


def _least(cells: Sequence[Sequence[float]]) -> float:
    """The least of the cells' means."""
    means = [mean for cell in cells if (mean := statistics.fmean(cell)) == mean]
    return min(means, default=math.nan)


def table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): one row per strategy, none where the sweep has no range of rates."""
    columns = ["freeze", "rates", "best rate", f"{ranking.split} loss", ranking.label, "last before divergence"]
    rows = []
    for course in courses(ranking):
        best, last, end = course.best, course.last, course.end
        spread = f"{course.points[0].typed} to {course.points[-1].typed}"
        stable = "none" if last is None else last.typed if end is not None else f"none diverged up to {last.typed}"
        found = ["-", "-", "-"] if best is None else [best.typed, shown(best.loss), shown(best.value)]
        rows.append([course.strategy or "job", spread, *found, stable, suggestion(course)])
    return [*columns, "suggested range"], rows


def suggestion(course: Course) -> str:
    """As it can be typed."""
    return ",".join(p.typed for p in course.suggested) or "none"


def sentence(course: Course) -> str:
    """What to try at length."""
    best = course.best
    if best is None:
        return f"every rate of freeze={course.strategy} diverged: try smaller ones"
    edges = {course.points[0].rate: "lowest", course.points[-1].rate: "highest"}
    more = f"; the best is the {edges[best.rate]} that was tried" if best.rate in edges else ""
    return f"suggested range of freeze={course.strategy}: {LR}={suggestion(course)}{more}"


def shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
