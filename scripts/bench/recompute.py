"""What engine.recompute saves and takes: peak memory and time of a step, in turn, and whether the weights are the same.

    python scripts/bench/recompute.py [--batches 32 64 128] [--repeats 3]

A vision transformer of six blocks (freeze.py's), SGD, fp32. Memory is the largest resident size during three steps over
that before them; each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from freeze import RUNGS, build
from rich.console import Console
from rich.table import Table
from step import Batches, ours

STEPS = 3


def measure(rung: str, batch_size: int, recompute: bool) -> None:
    """Print (bytes by which the resident size grew at its largest, seconds of a step, digest of the weights)."""
    network, data = build("vit"), Batches(batch_size, STEPS)
    run = ours(network, data, STEPS, RUNGS[rung], recompute=recompute)
    importlib.import_module("torch.utils.tensorboard")  # a run has it; its modules are no memory of a step
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    seconds = run()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    print(json.dumps([peak - before, seconds, digest.hexdigest()]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        rung, batch, recompute = options.measure
        measure(rung, int(batch), recompute == "true")
        return
    table = Table(title=f"a step of vit, median of {options.repeats}")
    for column in ("trains", "batch", "MB", "MB, recompute", "ratio", "step", "weights"):
        table.add_column(column)
    for rung in ("100%", "50%"):
        for batch in options.batches:
            seen: dict[str, list[tuple[float, float, str]]] = {"false": [], "true": []}
            for _ in range(options.repeats):
                for recompute, found in seen.items():
                    command = [sys.executable, __file__, "--measure", rung, str(batch), recompute]
                    found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            plain, again = ([statistics.median(column) for column in list(zip(*rows, strict=True))[:2]]
                            for rows in seen.values())  # fmt: skip
            equal = len({row[2] for rows in seen.values() for row in rows}) == 1
            table.add_row(
                rung, str(batch), f"{plain[0] / 1e6:.0f}", f"{again[0] / 1e6:.0f}", f"x {again[0] / plain[0]:.2f}",
                f"x {again[1] / plain[1]:.2f}", "equal" if equal else "DIFFERENT",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
