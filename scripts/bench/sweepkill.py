"""Sweeps killed with SIGKILL at random moments and started again, until they end where an untouched one did.

    python scripts/bench/sweepkill.py [--kills 60] [--seed 0] [--only lora soup ray]

Hit is the command, one of its workers, the process that workers are forked from, or all of them. Sweeps that share
and that do not, halving, soup, low-rank updates, averaged weights, a cache on disk, a Ray cluster of this machine;
threads are not typed, so that each job has what the plan gave it. Compared with a sweep that nobody touched: the same
directories and no more, weights, histories, metrics, the leaderboard.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BASE = [
    "dataset.train=240", "dataset.val=120", "dataset.test=60", "batch_size=24", "model=resnet9_w16", "epochs=3",
    "runtime.precision=fp32", "runtime.layout=contiguous", "engine.save_every=4", "stage=finetune", "init_from=null",
    "dataset.augment.flip=true",
]  # fmt: skip
VARIANTS = {
    "unshared": ["freeze=none,last_groups", "optimizer.lr=0.01,0.03", "sweep.share=off"],
    "shared": ["freeze=none,head_only,lp_ft", "optimizer.lr=0.01,0.03"],
    "a pretraining": ["freeze=none,head_only", "optimizer.lr=0.01,0.03", "init_from=auto", "pretrain.epochs=1"],
    "halving": ["freeze=none", "optimizer.lr=0.003,0.01,0.03", "sweep.halving.factor=3", "sweep.share=off"],
    "soup": ["freeze=none,last_groups", "optimizer.lr=0.01,0.02", "sweep.soup=greedy"],
    "lora": ["freeze=lora,head_only", "optimizer.lr=0.01,0.03", "sweep.soup=uniform"],
    "averaged weights": ["freeze=none,last_groups", "optimizer.lr=0.01,0.03", "engine.ema=0.9", "sweep.share=off"],
    "cache on disk": [
        "freeze=head_only",
        "optimizer.lr=0.01,0.03,0.1",
        "freeze.cache=disk",
        "dataset.augment.flip=false",
    ],
    "ray": ["freeze=none,head_only", "optimizer.lr=0.01,0.03", "sweep.on=ray", "sweep.jobs=2", "sweep.patience=8",
            "sweep.cluster={init: {address: auto}}", "runtime.threads=1"],
}  # fmt: skip
TARGETS = ("the command", "a worker", "the forkserver", "all of them")
HANGS = 900.0  # seconds


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(p) for p in found]


@contextlib.contextmanager
def cluster(variant: str) -> Iterator[None]:
    """A Ray cluster that outlives the commands."""
    ray = str(Path(sys.executable).with_name("ray"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if variant == "ray":
        subprocess.run([ray, "start", "--head", "--num-cpus", "2", "--disable-usage-stats"], check=True, **quiet)
    try:
        yield
    finally:
        if variant == "ray":
            subprocess.run([ray, "stop", "--force"], check=True, **quiet)


def ray_workers() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "^ray::work"], capture_output=True, text=True).stdout.split()
    return [int(p) for p in found]


def of_command(pid: int, word: str) -> list[int]:
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


class Round:
    """One variant: its untouched sweep, and one that is killed."""

    def __init__(self, home: Path, options: list[str]) -> None:
        self.home, self.options = home, options
        self.environment = {**os.environ, "HYDRATUNE_CACHE": str(home / "cache")}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        arguments = [*BASE, *self.options, f"hydra.sweep.dir={name}", f"outputs={name}-outputs"]
        return subprocess.Popen(
            [sys.executable, "-m", "hydratune", "-m", *arguments], cwd=self.home, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=(self.home / "errors").open("ab"), start_new_session=True,
        )  # fmt: skip

    def whole(self) -> float:
        began = time.monotonic()
        code = self.start("whole").wait()
        assert code == 0, (self.home / "errors").read_text()[-3000:]
        return time.monotonic() - began

    def strike(self, process: subprocess.Popen[bytes], target: str, chance: random.Random) -> bool:
        """Whether it hit anything."""
        servers = of_command(process.pid, "forkserver")
        workers = [w for s in servers for w in children(s)] + ray_workers()
        victims = {
            "the command": [process.pid], "a worker": [chance.choice(workers)] if workers else [],
            "the forkserver": servers, "all of them": [process.pid, *servers, *workers],
        }[target]  # fmt: skip
        if process.poll() is not None or not victims:
            return False
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(HANGS)  # where the command lives on, it comes to an end by itself
        return True

    def done(self) -> bool:
        return (self.home / "killed" / "report.html").is_file()

    def unequal(self) -> list[str]:
        """What is not as in the untouched sweep."""
        ours, theirs = (seen(self.home / name) for name in ("killed", "whole"))
        found = [f"{d}: is not in both" for d in ours.keys() ^ theirs.keys()]
        for directory in ours.keys() & theirs.keys():
            found += [f"{directory}: {k}" for k, v in ours[directory].items() if v != theirs[directory][k]]
        if table(self.home / "killed") != table(self.home / "whole"):
            found.append("the leaderboard")
        return found


def seen(sweep: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sweep.glob("*/run.json"):
        record = json.loads(path.read_text())
        kept = ("status", "metrics", "history", "best_step", "num_steps", "checkpoint", "fingerprint")
        found[path.parent.name] = {k: record.get(k) for k in kept} | {
            "threads": record.get("runtime", {}).get("threads")
        }
    return found


def table(sweep: Path) -> list[tuple[str, ...]]:
    with (sweep / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    return sorted((r["directory"], r["status"], r["val accuracy"], r["test accuracy"]) for r in rows)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    console = Console(width=140, highlight=False)
    hits: Counter[tuple[str, str]] = Counter()
    equal = rounds = 0
    each = -(-options.kills // len(options.only))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as around:
        for variant in options.only:
            home = Path(place) / str(len(hits)) / variant.replace(" ", "-")
            home.mkdir(parents=True)
            around.enter_context(cluster(variant))
            current = Round(home, VARIANTS[variant])
            seconds, kills = current.whole(), 0
            while kills < each and sum(hits.values()) < options.kills:
                for old in ("killed", "killed-outputs", "cache/features"):
                    shutil.rmtree(home / old, ignore_errors=True)
                rounds, before = rounds + 1, kills
                while kills < each and kills - before < 4 and not current.done():
                    process = current.start("killed")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(seconds * chance.uniform(0.15, 0.85))
                    target = chance.choice(TARGETS)
                    if current.strike(process, target, chance):
                        kills += 1
                        hits[variant, target] += 1
                    else:
                        seconds *= 0.8  # it was quicker: the machine has less to do than it had
                    process.wait(HANGS)
                code = current.start("killed").wait(HANGS)
                wrong = current.unequal() if code == 0 else [(home / "errors").read_text()[-2000:]]
                equal += 0 if wrong else kills - before
                said = "equal" if not wrong else f"DIFFERS: {'; '.join(wrong[:6])}"
                console.print(f"{sum(hits.values())}/{options.kills}  {variant}, {kills - before} kills: {said}")
    shown = Table("sweep", *TARGETS, title="kills")
    for variant in options.only:
        shown.add_row(variant, *(str(hits[variant, target]) for target in TARGETS))
    console.print(shown)
    total = sum(hits.values())
    console.print(f"{equal} of {total} kills: the sweep ended in the bits of one that was not touched, no job twice")
    return 0 if equal == total else 1


if __name__ == "__main__":
    sys.exit(main())
