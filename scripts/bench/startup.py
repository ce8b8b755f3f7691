"""Seconds from the start of a process: `hydratune --help` and the first optimizer step, against importing torch.

    python scripts/bench/startup.py [--repeats 7]

The commands take turns. The first optimizer step of `stage=pretrain` is the wall time at which TensorBoard's record of
step 1 was written, less the time at which the process was started. The precision is probed once before the clock and
remembered, as on any machine that has run the command before; the first time costs what the last line says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydratune.distributed.runtime import cpu_name

IMPORT_TORCH = [sys.executable, "-c", "import torch"]
IMPORT_BOTH = [sys.executable, "-c", "import torch, torchvision"]
HELP = [sys.executable, "-m", "hydratune", "--help"]


def whole(command: list[str]) -> float:
    started = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.time() - started


def first_step(environment: dict[str, str]) -> float:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "hydratune", "stage=pretrain", "steps=1", "engine.log_every=1", "test=false"]
        started = time.time()
        subprocess.run(
            [*command, "hydra.run.dir=run"], cwd=home, check=True, stdout=subprocess.DEVNULL, env=environment
        )
        (events,) = Path(home).glob("run/events.out.tfevents.*")
        times = [e.wall_time for e in EventFileLoader(str(events)).Load() if e.step == 1]
        return min(times) - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HYDRATUNE_CACHE": cache}
        cold = first_step(environment)
        names = ("import torch", "hydratune --help", "import torch, torchvision", "first step of stage=pretrain")
        seen: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(repeats + 1):
            now = [whole(IMPORT_TORCH), whole(HELP), whole(IMPORT_BOTH), first_step(environment)]
            if turn:
                for name, seconds in zip(names, now, strict=True):
                    seen[name].append(seconds)
    table = Table(title=f"seconds, {repeats} repeats; {cpu_name()}")
    for column in ("what", "median", "min", "max", "ratio to the row above: median", "min", "max"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for i, (name, values) in enumerate(seen.items()):
        numbers = [f"{f(values):.2f}" for f in (statistics.median, min, max)]
        ratios = [v / b for v, b in zip(values, seen[names[i - 1]], strict=True)] if i % 2 else []
        table.add_row(name, *numbers, *(f"{f(ratios):.2f}" for f in (statistics.median, min, max) if ratios))
    Console(width=120).print(table)
    print(f"first step on a machine that has not probed its precision yet: {cold:.2f} s")


if __name__ == "__main__":
    main()
