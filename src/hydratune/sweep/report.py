"""report.html, pictures, TensorBoard at the sweep's level; and the command hydratune-report."""

from __future__ import annotations

import sys
from pathlib import Path

from hydratune.record.progress import Screen
from hydratune.sweep import ranking


def write(directory: Path) -> None:
    ranking.write_tables(directory, ranking.read(directory))


def show(directory: Path, screen: Screen) -> None:
    """The table again."""
    ranked = ranking.read(directory)
    screen.table("jobs", *ranking.job_table(ranked))
    if ranked.cells:
        screen.table("cells, over seeds", *ranking.cell_table(ranked))
        screen.table("best of each strategy", *ranking.cell_table(ranked, ranking.best_of_each(ranked)))
        for warning in ranked.edges():
            screen.line(warning)
    screen.line(ranking.summary(ranked))


def main() -> None:
    """hydratune-report DIRECTORY"""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: hydratune-report <sweep directory>", file=sys.stderr)
        sys.exit(2)
    directory = Path(sys.argv[1])
    try:
        write(directory)
        show(directory, Screen())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
