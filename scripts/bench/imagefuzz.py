"""What becomes of damaged image files: read, refused with their names, or something that should not be.

    python scripts/bench/imagefuzz.py [--files 12000] [--seed 0]

As many seeded mutations of whole files of eight formats. Counts those that were read, refused, refused without the name
of the file, anything else that was raised, and those that took longer than --limit seconds; and the memory at its peak.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydratune.data.images.decode import decode
from hydratune.distributed.runtime import cpu_name

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.imagefuzz import ENDINGS, damaged_files

COLUMNS = ("read", "refused", "not named", "something else", "too slow")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=5.0)
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    before = peak_mb()
    table = Table("format", *COLUMNS, "slowest, s", title=f"{arguments.files:,} damaged files; {cpu_name()}")
    with tempfile.TemporaryDirectory() as home:
        for kind in ENDINGS:
            counts, slowest = dict.fromkeys(COLUMNS, 0), 0.0
            for path in damaged_files(kind, arguments.files // len(ENDINGS), Path(home), arguments.seed):
                began = time.perf_counter()
                try:
                    decode(path, 32)
                    counts["read"] += 1
                except ValueError as error:
                    counts["refused"] += 1
                    counts["not named"] += str(path) not in str(error)
                except Exception as error:
                    counts["something else"] += 1
                    print(f"{kind}: {error!r}")
                took = time.perf_counter() - began
                counts["too slow"] += took > arguments.limit
                slowest = max(slowest, took)
            table.add_row(kind, *(f"{count:,}" for count in counts.values()), f"{slowest:.2f}")
    Console(width=120).print(table)
    print(f"memory at its peak: {peak_mb():,.0f} MB, {before:,.0f} MB of it before the first file")


if __name__ == "__main__":
    main()
