"""What checkpoints cost at the default interval, once an epoch: a share of the training time, hashes and fsync apart.

    python scripts/bench/checkpoint.py [--repeats 5]

The loop's own saves are timed within real runs: of a job of 10,000 images and batches of 128, `saving` is the time in
`save`, `hash` and `fsync` what of it goes into SHA-256 and into waiting for the disk.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conftest import make_job

from hydratune.distributed.runtime import cpu_name
from hydratune.engine import loop
from hydratune.experiment import run as job_module
from hydratune.experiment.run import run_job
from hydratune.record import checkpoint
from hydratune.record.screen import Screen

spent: dict[str, float] = defaultdict(float)


def timed(module: Any, name: str, label: str) -> None:
    real = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return real(*arguments, **options)
        finally:
            spent[label] += time.perf_counter() - began

    setattr(module, name, call)


def advance(*arguments: Any, **options: Any) -> Iterator[Any]:
    began = time.perf_counter()
    for trial in loop.advance(*arguments, **options):
        spent["loop"] += time.perf_counter() - began
        yield trial
        began = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    timed(loop, "save", "saving")
    timed(checkpoint, "sha256", "hash")
    timed(checkpoint, "fsync", "fsync")
    job_module.advance = advance  # type: ignore[assignment]
    for model, epochs, images in (("simple_cnn", 2, 10_000), ("resnet20", 2, 10_000), ("resnet18", 1, 2_000)):
        shares: dict[str, list[float]] = {"saving": [], "hash": [], "fsync": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as home:
                spent.clear()
                options = ["stage=pretrain", f"model={model}", f"epochs={epochs}", f"dataset.train={images}",
                           "dataset.val=200", "dataset.test=200", "test=false", "optimizer.momentum=0.9"]  # fmt: skip
                job = make_job(options, Path(home))
                run_job(job, Screen(quiet=True))
                for name, values in shares.items():
                    values.append(100 * spent[name] / (spent["loop"] - spent["saving"]))
        print(f"{model}: percent of the training time, {repeats} runs; {cpu_name()}")
        for name, values in shares.items():
            print(f"  {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})", flush=True)


if __name__ == "__main__":
    main()
