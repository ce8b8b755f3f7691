"""A long run of a tiny network with saving, evaluation and TensorBoard on: memory and open files over its steps.

    python scripts/bench/soak.py [--steps 20000]

Memory at the end is to lie within 3% of memory at a tenth of the steps, and as many files are to be open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydratune.distributed.runtime import cpu_name


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable, "-m", "hydratune", "stage=pretrain", "model=simple_cnn", f"steps={steps}", "batch_size=16",
            "dataset.train=400", "dataset.val=100", "dataset.test=100", "optimizer=adamw", "optimizer.lr=1e-4",
            "engine.ema=0.99", "engine.eval_every=100", "engine.save_every=50", "engine.log_every=10",
            "dataset.augment.flip=true", "runtime.precision=fp32", "runtime.threads=2", "hydra.run.dir=run",
        ]  # fmt: skip
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)
        record, seen, marks = Path(home) / "run" / "run.json", {}, [steps * i // 10 for i in range(1, 11)]
        while process.poll() is None:
            time.sleep(0.2)
            step = json.loads(record.read_text()).get("step", 0) if record.exists() else 0
            for mark in marks:
                if mark not in seen and mark <= step < mark + steps // 10:
                    try:
                        seen[mark] = step, resident_mb(process.pid), open_files(process.pid)
                    except (OSError, IndexError):
                        break
        assert process.returncode == 0
        table = Table("step", "memory, MB", "open files", title=f"{' '.join(command[2:6])} ...; {cpu_name()}")
        for step, memory, files in seen.values():
            table.add_row(str(step), f"{memory:.1f}", str(files))
        rows = list(seen.values())
        growth, files = rows[-1][1] / rows[0][1] - 1, {f for _, _, f in rows}
        console = Console(width=120)
        console.print(table)
        console.print(
            f"{steps} steps in {time.monotonic() - began:.0f} s: memory {growth:+.2%} from step {rows[0][0]} to step "
            f"{rows[-1][0]}, open files {min(files)} to {max(files)}"
        )
        # a file that is being written when somebody looks is one more
        return 0 if growth <= 0.03 and rows[-1][2] <= rows[0][2] + 1 else 1


if __name__ == "__main__":
    sys.exit(main())
