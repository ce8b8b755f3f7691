"""Sweeps with `sweep.budget`: how much of it they take, and what the choice costs against the whole grid.

    python scripts/bench/budget.py [--sweeps 10] [--only 0 3] [--budget 2m] [--no-full] [--results FILE.jsonl]

Each sweep is another grid of 6 to 12 jobs over rates, strategies and seeds on generated pictures, made to take several
minutes. Wall time is the whole command's, from its start to its end. regret: validation of the best cell of the whole
grid, less that of the chosen cell, both as the sweep without a budget has them (over their seeds); beside it the
standard deviation of the best cell's seeds, where it has several. With --results what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hydratune.distributed.runtime import cpu_name
from hydratune.sweep import ranking
from hydratune.sweep.settings import seconds_of_budget

BASE = ["stage=finetune", "init_from=null", "dataset.train=2000", "dataset.val=500", "dataset.test=500",
        "batch_size=32", "freeze=none", "hydra.sweep.dir=sweep"]  # fmt: skip
# What varies
GRIDS = [
    ["model=resnet9_w16", "dataset=shapes10", "epochs=36", "optimizer.lr=0.003,0.03,0.3", "freeze=none,last_groups"],
    ["model=resnet9_w16", "dataset=shapes10", "epochs=30", "optimizer.lr=0.001,0.01,0.1", "seed=1,2,3"],
    ["model=simple_cnn", "dataset=shapes100", "epochs=300", "optimizer.lr=0.01,0.1,1.0", "seed=1,2", "sweep.share=off"],
    ["model=resnet20", "dataset=shapes10", "epochs=20", "optimizer.lr=0.01,0.03,0.1", "freeze=none,head_only,lp_ft"],
    ["model=resnet9_w16", "dataset=shapes100", "epochs=36", "optimizer.lr=0.01,0.1", "freeze=none,lp_ft,gradual"],
    ["model=resnet9_w16", "dataset=shapes10", "epochs=24", "optimizer.lr=0.001,0.003,0.01,0.03,0.1,0.3", "seed=1,2"],
    ["model=resnet20", "dataset=shapes100", "epochs=24", "optimizer.lr=0.03,0.1,0.3", "optimizer.weight_decay=0,5e-4"],
    ["model=mlp", "dataset=shapes10", "epochs=900", "optimizer.lr=0.003,0.03,0.3", "seed=1,2", "sweep.share=off"],
    ["model=resnet9_w16", "dataset=shapes10", "epochs=24", "optimizer.lr=0.01,0.1", "freeze=none,last_groups,head_only",
     "seed=1,2"],
    ["model=resnet9_w16", "dataset=shapes10", "epochs=24", "optimizer.lr=0.01,0.1", "batch_size=16,32,64", "seed=1,2"],
]  # fmt: skip


def sweep(line: Iterable[str], home: Path) -> tuple[float, list[str]]:
    """(seconds of the command, what it printed of its course)"""
    home.mkdir()
    began = time.perf_counter()
    command = [sys.executable, "-m", "hydratune", "-m", *line]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    elapsed = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    course = [text for text in done.stdout.splitlines() if text.startswith(("sweep.budget", "halving"))]
    return elapsed, course


def line_of(grid: list[str]) -> list[str]:
    named = {o.partition("=")[0] for o in grid}
    return [*(o for o in BASE if o.partition("=")[0] not in named), *grid]


def measured(number: int, budget: str, full: bool, home: Path) -> dict[str, Any]:
    grid = GRIDS[number % len(GRIDS)]
    load = os.getloadavg()[0]
    elapsed, course = sweep([*line_of(grid), f"sweep.budget={budget}"], home / "short")
    short = ranking.read(home / "short" / "sweep")
    chosen = short.cells[0].settings if short.cells else None
    row: dict[str, Any] = {
        "sweep": number, "budget": budget, "load": round(load, 2), "machine": cpu_name(), "jobs": len(short.rows),
        "seconds": elapsed, "share": elapsed / seconds_of_budget(budget), "chosen": chosen, "course": course,
        "complete": sum(r.status == "complete" for r in short.rows), "grid": " ".join(grid),
    }  # fmt: skip
    if not full or chosen is None:
        return row
    whole_seconds, _ = sweep(line_of(grid), home / "whole")
    whole = ranking.read(home / "whole" / "sweep")
    best, same = whole.cells[0], next(c for c in whole.cells if c.settings == chosen)
    deviation = best.deviation if best.deviation == best.deviation else None
    return {**row, "whole": whole_seconds, "regret": best.mean - same.mean, "deviation": deviation}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=len(GRIDS), help="how many")
    parser.add_argument("--only", type=int, nargs="+", help="which ones, from 0 on")
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--no-full", action="store_true", help="no sweep of the whole grid, and so no regret")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    wanted = options.only or range(options.sweeps)
    path: Path | None = options.results
    rows = [json.loads(text) for text in path.read_text().splitlines()] if path and path.is_file() else []
    print(f"{' '.join(sys.argv)}; {cpu_name()}, {os.cpu_count()} cores", flush=True)
    for number in wanted:
        if any(row["sweep"] == number and row["budget"] == options.budget for row in rows):
            continue
        with tempfile.TemporaryDirectory() as place:
            rows.append(measured(number, options.budget, not options.no_full, Path(place)))
        print(json.dumps(rows[-1]), flush=True)
        if path is not None:
            with path.open("a") as file:
                file.write(f"{json.dumps(rows[-1])}\n")
    table = Table(title=f"sweep.budget={options.budget}; {cpu_name()}, {os.cpu_count()} cores")
    for column in ("grid", "jobs", "complete", "share of the budget", "whole grid, s", "regret", "sd of seeds", "load"):
        table.add_column(column)
    shown = [row for row in rows if row["budget"] == options.budget]
    for row in shown:
        numbers = [f"{row[k]:.4f}" if row.get(k) is not None else "" for k in ("regret", "deviation")]
        whole = f"{row['whole']:.0f}" if "whole" in row else ""
        cells = [row["grid"], str(row["jobs"]), str(row["complete"]), f"{row['share']:.2f}", whole, *numbers]
        table.add_row(*cells, str(row["load"]))
    Console(width=180).print(table)
    shares = [row["share"] for row in shown]
    print(f"share of the budget: median {statistics.median(shares):.2f}, largest {max(shares):.2f}")


if __name__ == "__main__":
    main()
