"""Seconds that it takes to know an image folder by its contents: the first time, and again.

    python scripts/bench/digest.py [--files 50000] [--bytes 2500] [--repeats 5]

As many files of random bytes in ten class folders, on the disk of --home (default: the temporary directory). The first
time all are read and hashed; again each is looked at (stat) and known by its size, inode and times. Looking for the
files in the folders is timed apart. The files were just written, so they come from the page cache and not from a disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydratune.data.hashes import SETTLED
from hydratune.data.images.augment import Augment
from hydratune.data.images.folder import ImageFolder
from hydratune.distributed.runtime import cpu_name
from hydratune.tasks.classification import Classification


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--bytes", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--home")
    arguments = parser.parse_args()
    seen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.home) as home:
        root = Path(home) / "images"
        for i in range(arguments.files):
            path = root / f"class {i % 10}" / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(arguments.bytes))
        time.sleep(SETTLED + 0.5)
        for turn in range(arguments.repeats):
            os.environ["HYDRATUNE_CACHE"] = f"{home}/cache{turn}"
            for name in ("the first time", "again"):
                data = ImageFolder(Classification(), Augment(), str(root), mean=[0.5] * 3, std=[0.25] * 3)
                seen.setdefault("looking for the files", []).append(seconds(data.spec))
                seen.setdefault(f"the digest, {name}", []).append(seconds(data.files))
    title = f"seconds for {arguments.files:,} files of {arguments.bytes:,} bytes; {cpu_name()}"
    table = Table("what", "median", "min", "max", title=title)
    for name, values in seen.items():
        table.add_row(name, *(f"{of(values):.2f}" for of in (statistics.median, min, max)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
