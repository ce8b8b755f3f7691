"""report.html, pictures and TensorBoard at the sweep's level; and the command hydratune-report."""

from __future__ import annotations

import base64
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hydratune.core.markdown import as_shown, markdown_table
from hydratune.record.run import write_text
from hydratune.record.screen import Screen
from hydratune.record.tensorboard import Board
from hydratune.sweep import figures, plots, ranking, rates
from hydratune.sweep.ranking import Ranking
from hydratune.sweep.rows import Row, read_sweep

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: .6rem 0 1.6rem; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left; white-space: nowrap }
th { border-bottom: 2px solid #888 } tr.failed td { color: #a02020 } tr.first td { font-weight: 600 }
img { max-width: 100%; margin: .5rem 1rem 1rem 0 } pre { background: #f4f4f4; padding: .8rem; overflow-x: auto }
.warning { background: #fff4d6; padding: .5rem .8rem; border-left: 4px solid #d9a400 }
"""  # noqa: E501


def write(directory: Path) -> None:
    """Tables, pictures, report.html and the sweep's own event file. Raises ValueError where no sweep has been."""
    ranked = ranking.read(directory)
    ranking.write_tables(directory, ranked)
    pictures = plots.pictures(ranked)
    for name, png in pictures.items():
        (directory / f"{name}.png").write_bytes(png)
    write_text(directory / "report.html", _page(directory, ranked, pictures))
    for old in directory.glob("events.out.tfevents.*"):
        old.unlink()
    board = Board(directory)
    board.text("leaderboard", ranking.markdown(ranked))
    columns, rows = rates.table(ranked)
    if rows:
        board.text("rates", markdown_table(columns, rows))
    for name, png in pictures.items():
        board.picture(name, plots.as_tensor(png), 0)
    board.close()


def show(directory: Path, screen: Screen) -> None:
    """The tables on the screen."""
    ranked = ranking.read(directory)
    screen.table("jobs", *ranking.job_table(ranked))
    columns, rates_tried = rates.table(ranked)
    if ranked.cells:
        screen.table(f"cells, over {ranked.over}", *ranking.cell_table(ranked))
        screen.table("best of each strategy", *ranking.strategy_table(ranked))
        for edge in ranked.edges():
            screen.line(f"warning: {edge}")
    if rates_tried:
        screen.table("learning rates", columns, rates_tried)
        for course in rates.courses(ranked):
            screen.line(rates.sentence(course))
    screen.line(ranking.summary(ranked))
    screen.line(f"report: {directory / 'report.html'}")


def _page(directory: Path, ranked: Ranking, pictures: dict[str, bytes]) -> str:
    command, winner = read_sweep(directory)["command"], ranked.winner
    columns, rows = ranking.job_table(ranked)
    broken = ("failed", "unreadable")
    classes = ["failed" if r.status in broken else "first" if r is winner else "" for r in ranked.rows]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(directory.name)}</title><style>{STYLE}{figures.STYLE}</style>",
        f"<h1>Sweep {html.escape(directory.name)}</h1><p>{html.escape(ranking.summary(ranked))}</p>",
        f"<pre>{html.escape(command)}</pre>",
        *(f"<p class=warning>{html.escape(str(edge))}</p>" for edge in ranked.edges()),
        *figures.figures(ranked),
        *(
            f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for name, png in pictures.items()
            if name in ("rates", "interpolation")
        ),
    ]
    rate_columns, rates_tried = rates.table(ranked)
    if rates_tried:
        parts += ["<h2>Learning rates</h2>", _table(rate_columns, rates_tried)]
    if ranked.cells:
        parts += ["<h2>Best of each strategy</h2>", _table(*ranking.cell_table(ranked, ranking.best_of_each(ranked)))]
        parts += [f"<h2>Cells, over {ranked.over}</h2>", _table(*ranking.cell_table(ranked))]
    parts += ["<h2>Jobs</h2>", _table(columns, rows, classes)]
    failed = [r for r in ranked.rows if r.status in broken]
    if failed:
        parts += ["<h2>Failures</h2>", *(_failure(r) for r in failed)]
    if winner is not None:
        settings = _read(winner.directory / ".hydra" / "config.yaml")
        parts += ["<h2>Settings of the winner</h2>", f"<pre>{html.escape(settings)}</pre>"]
        lineage = json.dumps(winner.record.as_json().get("lineage"), indent=1)
        parts += ["<h2>Where it comes from</h2>", f"<pre>{html.escape(lineage)}</pre>"]
        machine = {k: getattr(winner.record, k) for k in ("versions", "runtime", "started", "ended")}
        parts += ["<h2>Made with</h2>", f"<pre>{html.escape(json.dumps(machine, indent=1))}</pre>"]
    return "\n".join(parts) + f"\n<script>{figures.SCRIPT}</script>\n</html>\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(c)}" for c in columns)
    body = []
    for i, row in enumerate(rows):
        kind = f" class={classes[i]}" if classes and classes[i] else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}" for c in row))
    return f"<table><tr>{head}\n" + "\n".join(body) + "</table>"


def _failure(row: Row) -> str:
    text = row.error if row.status == "unreadable" else _read(row.directory / "traceback.txt")[-4000:] or row.error
    return f"<h3>{html.escape(row.directory.name)}</h3><pre>{html.escape(text)}</pre>"


def _read(path: Path) -> str:
    """What can be read of it; it may be damaged, or not there."""
    return path.read_text(errors="replace") if path.is_file() else ""


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
        print(as_shown(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(as_shown(f"error: {error.filename or directory}: {error.strerror}"), file=sys.stderr)
        sys.exit(2)
