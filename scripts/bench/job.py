"""Three learning rates by -m, from the start of the process to three complete run directories.

    HYDRATUNE_DATA=<folder with FashionMNIST/raw> python scripts/bench/job.py [--repeats 5]

A perceptron 784-64-128-64-10 with BatchNorm, Adam, batches of 128, one epoch of 55,000 images of Fashion-MNIST. The
peer is the same three jobs in Lightning + Hydra with torchvision's PIL pipeline (peers/lightning_hydra.py), as shipped
(no workers, as lightning-hydra-template has it) and with its best worker count. All take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydratune.distributed.runtime import cpu_name

ROOT = os.path.abspath(os.environ.get("HYDRATUNE_DATA", "data"))
OURS = [
    sys.executable, "-m", "hydratune", "-m", "stage=pretrain", "model=mlp", "dataset=fashion_mnist", "epochs=1",
    "dataset.augment.flip=false", "dataset.augment.crop_padding=0", "dataset.val_share=0.0833333333",
    "optimizer=torch", "optimizer.name=Adam", "optimizer.lr=1e-4,1e-3,1e-2", f"dataset.root={ROOT}",
]  # fmt: skip
PEER = [
    sys.executable,
    str(Path(__file__).parent / "peers" / "lightning_hydra.py"),
    "-m",
    "+lr=1e-4,1e-3,1e-2",
    f"+root={ROOT}",
]


def seconds(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as home:
        started = time.perf_counter()
        done = subprocess.run(command, cwd=home, capture_output=True, text=True)
        elapsed = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
        complete = list(Path(home).glob("**/run.json")) or list(Path(home).glob("**/checkpoints/last.ckpt"))
        assert len(complete) == 3, complete
        return elapsed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    commands = {"hydratune": OURS} | {f"Lightning + Hydra, {w} workers": [*PEER, f"+workers={w}"] for w in (0, 2)}
    seen: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            elapsed = seconds(command)
            if turn:
                seen[name].append(elapsed)
    show(f"seconds for three jobs, {repeats} repeats; {cpu_name()}", seen)


def show(title: str, seen: Mapping[str, Sequence[float]]) -> None:
    """Seconds of each, and how many times as fast hydratune is in the same turn."""
    table = Table(title=title)
    for column in ("who", "median", "min", "max", "hydratune is x times as fast: median", "min", "max"):
        table.add_column(column, justify="left" if column == "who" else "right")
    for name, values in seen.items():
        ratios = [v / o for v, o in zip(values, seen["hydratune"], strict=True)]
        numbers = [f"{f(values):.1f}" for f in (statistics.median, min, max)]
        table.add_row(name, *numbers, *(f"{f(ratios):.2f}" for f in (statistics.median, min, max)))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
