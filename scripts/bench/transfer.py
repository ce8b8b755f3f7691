"""Is pretraining worth it? The same steps from a pretrained trunk and from scratch, each at its best learning rate.

    python scripts/bench/transfer.py                                                 simple_cnn, shapes10 -> shapes100
    python scripts/bench/transfer.py --seeds 1 2 3 --rates 0.01 0.03 --from outputs/pretrain/cifar experiment=flowers5

Every arm is one sweep over rates and seeds; its rate is the one with the best mean validation accuracy over the seeds,
and only with that rate the test split is read. The margin is the difference of the two means of test accuracy; the
spread beside it is the larger standard deviation of the two arms over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table


def sweep(overrides: list[str], directory: Path) -> list[dict[str, object]]:
    """The records of a sweep's runs; what is there already is not run again."""
    command = [sys.executable, "-m", "hydratune", "-m", *overrides, f"hydra.sweep.dir={directory}", "resume=auto"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [json.loads(p.read_text()) for p in sorted(directory.glob("*/run.json"))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rates", nargs="+", default=["0.003", "0.01", "0.03", "0.1"])
    parser.add_argument("--from", dest="origin", default="auto")
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_intermixed_args()
    base = ["stage=finetune", "freeze=none", *options.overrides]
    if any(o.startswith("experiment=") for o in options.overrides):
        base = options.overrides
    seeds = "seed=" + ",".join(map(str, options.seeds))
    rows, tests = [], {}
    with tempfile.TemporaryDirectory() as home:
        for arm, origin in (("pretrained", options.origin), ("from scratch", "null")):
            place = Path(home) / arm.split()[-1]
            common = [*base, f"init_from={origin}", seeds]
            records: list[dict[str, object]] = []
            by_rate: dict[float, list[float]] = {}
            if len(options.rates) > 1:
                records = sweep([*common, "optimizer.lr=" + ",".join(options.rates)], place / "grid")
            for record in records:
                rate = record["provenance"]["optimizer"]["lr"]  # type: ignore[index]
                by_rate.setdefault(rate, []).append(record["metrics"]["val_accuracy"])  # type: ignore[index]
            best = max(by_rate, key=lambda r: statistics.mean(by_rate[r])) if by_rate else float(options.rates[0])
            tested = sweep([*common, f"optimizer.lr={best}", "test=true"], place / "best")
            by_rate[best] = [r["metrics"]["val_accuracy"] for r in tested]  # type: ignore[index]
            tests[arm] = [r["metrics"]["test_accuracy"] for r in tested]  # type: ignore[index]
            grid = "  ".join(f"{r:g}: {statistics.mean(v):.3f}" for r, v in sorted(by_rate.items()))
            edge = " (edge of the grid)" if len(by_rate) > 1 and best in (min(by_rate), max(by_rate)) else ""
            rows.append((arm, grid, f"{best:g}{edge}", said(by_rate[best]), said(tests[arm]), tested[0]["num_steps"]))
    table = Table(title=f"{' '.join(base)}, seeds {' '.join(map(str, options.seeds))}")
    for column in ("start", "mean validation accuracy by rate", "best rate", "validation", "test", "steps"):
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=140).print(table)
    margin = statistics.mean(tests["pretrained"]) - statistics.mean(tests["from scratch"])
    print(f"margin on test {margin:+.4f}; spread over seeds {max(map(statistics.stdev, tests.values())):.4f}")


def said(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
