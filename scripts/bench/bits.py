"""The same seed, the same bits: what two versions of the code make of the same commands.

    python scripts/bench/bits.py --before CHECKOUT [--data DIR]

Each case is run by an older checkout and by this one, in directories of their own with caches of their own, and what
their records hold is put side by side: the SHA-256 of the best checkpoint's weights, and the metrics to the last digit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
FIXED = ["runtime.precision=fp32", "runtime.layout=contiguous", "runtime.threads=1"]
MAIN = ["dataset.train=1000", "dataset.val=200", "dataset.test=200", "pretrain.dataset.train=1000", "epochs=2",
        "pretrain.epochs=1"]  # fmt: skip
STRATEGIES = "freeze=none,head_only,last_groups,lp_ft"
CASES = {
    "main job": [*MAIN],
    "resnet20, real images": ["stage=pretrain", "model=resnet20", "dataset=cifar10_12k", "steps=12", "batch_size=64",
                              "engine.eval_every=6", "dataset.augment.flip=true", "dataset.augment.crop_padding=4"],
    "augmented folder": ["stage=pretrain", "model=resnet9_w16", "dataset=flowers5", "steps=8", "batch_size=32",
                         "engine.eval_every=4", "dataset.augment.trivial=true", "dataset.augment.jitter=0.2",
                         "dataset.augment.mixup=0.2", "optimizer=adamw", "schedule=cosine_warmup",
                         "engine.accumulate=2"],
    "bert_tiny": ["experiment=bert_tiny_mlm", "steps=12", "epochs=null", "engine.eval_every=6"],
    "bert_tiny, fine-tuned": ["experiment=bert_tiny_sentiment", "steps=8", "pretrain.steps=6", "dataset.train=200",
                              "dataset.val=60", "dataset.test=60"],
    "shared sweep": ["-m", *MAIN, STRATEGIES, "optimizer.lr=0.01,0.03", "sweep.jobs=1"],
    "resumed": [*MAIN, "epochs=6", "engine.save_every=4", "freeze=lp_ft", "engine.ema=0.9"],
}  # fmt: skip


def start(code: Path, home: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(code / "src"), "HYDRATUNE_CACHE": str(home / "cache")}
    where = "hydra.sweep.dir=sweep" if "-m" in arguments else "name=run"
    return subprocess.Popen(
        [sys.executable, "-m", "hydratune", *arguments, *FIXED, where, "outputs=outputs"], cwd=home,
        env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=(home / "errors").open("ab"),
    )  # fmt: skip


def made(code: Path, home: Path, case: str) -> dict[str, str]:
    """What a case leaves: by run, the digest of its weights, metrics and history."""
    home.mkdir()
    process = start(code, home, CASES[case])
    if case == "resumed":
        stop_between(process, home)
        (run,) = home.glob("outputs/finetune/run")
        process = start(code, home, [f"resume={run.relative_to(home)}"])
    if process.wait(3600):
        raise SystemExit(f"{case} failed with {code}:\n{(home / 'errors').read_text()[-3000:]}")
    found = {}
    for path in sorted([*home.glob("outputs/*/*/run.json"), *home.glob("sweep/*/run.json")]):
        record = json.loads(path.read_text())
        kept = [record["checkpoint"]["sha256"], record["metrics"], record["history"]]
        name = path.parent.name if path.parent.parent.name == "sweep" else path.parent.parent.name
        found[name] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
    return found


def stop_between(process: subprocess.Popen[bytes], home: Path) -> None:
    """SIGTERM once the fine-tuning has a checkpoint."""
    while process.poll() is None and not list(home.glob("outputs/finetune/run/checkpoints/step-*/manifest.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(3600)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    table = Table("case", "run", "before", "after", "", title="weights, metrics and history")
    unequal = 0
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate(options.only):
            columns = []
            for name, code in (("before", options.before.resolve()), ("after", ROOT)):
                columns.append(made(code, Path(place) / f"{number}-{name}", case))
            for run in sorted(columns[0].keys() | columns[1].keys()):
                before, after = (column.get(run, "-") for column in columns)
                unequal += before != after
                table.add_row(case, run, before, after, "equal" if before == after else "DIFFERS")
    Console(width=140).print(table)
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
