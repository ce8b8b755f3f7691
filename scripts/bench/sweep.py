"""A sweep of six learning rates by four freezing strategies, from one command to 24 complete directories.

    HYDRATUNE_DATA=<folder with cifar10_12k> python scripts/bench/sweep.py [--rounds 3] [--epochs 6] [--only ...]

ResNet-20, 2,000 real images and 1,000 of validation, batches of 64, flips and crops. The peer is the same jobs through
Lightning and Hydra's BasicLauncher (peers/lightning_finetune.py), as shipped and tuned. All take turns.
full: 24 jobs; ours, with sharing off, with halving, the peer shipped and tuned. Four of ours are then run alone.
quality: the grid over three seeds in full and halved: whether halving finds a cell as good as the best.
head: the six head_only jobs; cached: the same for 20 epochs without augmentation; nothing: 16 jobs of one step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from job import show

from hydratune.distributed.runtime import cpu_name
from hydratune.sweep import ranking

DATA = Path(os.environ.get("HYDRATUNE_DATA", "data")).absolute() / "cifar10_12k"
RATES = "1e-3,3e-3,1e-2,3e-2,1e-1,3e-1"
STRATEGIES = "none,last_groups,head_only,lp_ft"
PEER = [sys.executable, str(Path(__file__).parent / "peers" / "lightning_finetune.py"), "-m"]


def folders(home: Path) -> None:
    """200 images of each class to train on, 100 for validation."""
    for kind in sorted((DATA / "train").iterdir()):
        images = sorted(kind.iterdir())[:300]
        for name, part in (("train", images[:200]), ("val", images[200:])):
            target = home / "images" / name / kind.name
            target.mkdir(parents=True)
            for image in part:
                shutil.copy(image, target)


def hydratune(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hydratune", *arguments]


def ours(home: Path, epochs: int, augment: bool, *more: str) -> list[str]:
    moved = [] if augment else ["dataset.augment.flip=false", "dataset.augment.crop_padding=0"]
    return hydratune(
        "-m", "stage=finetune", "model=resnet20", "dataset=cifar10_12k", f"dataset.root={home}/images", "test=false",
        f"init_from={home}/weights.safetensors", f"optimizer.lr={RATES}", "batch_size=64", f"epochs={epochs}", *moved,
        *more,
    )  # fmt: skip


def peer(home: Path, epochs: int, augment: bool, strategies: str, tuned: bool) -> list[str]:
    return [
        *PEER, f"+root={home}/images", f"+weights={home}/weights.safetensors", f"+lr={RATES}", f"+freeze={strategies}",
        f"+epochs={epochs}", f"+augment={str(augment).lower()}", f"+tuned={str(tuned).lower()}", "+workers=2",
    ]  # fmt: skip


def seconds(command: list[str], jobs: int) -> tuple[float, float, str]:
    with tempfile.TemporaryDirectory() as home:
        return run(command, jobs, Path(home))


def run(command: list[str], jobs: int, home: Path) -> tuple[float, float, str]:
    """(seconds, those after the planner said how many it would take, what it printed); leaves directories in `home`."""
    home.mkdir(exist_ok=True)
    started, announced, said = time.perf_counter(), 0.0, []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (home / "errors").open("w+") as errors:
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if " jobs, about " in line:
                announced = time.perf_counter()
        code = process.wait()
        elapsed = time.perf_counter() - started
        errors.seek(0)
        assert code == 0, "".join(said)[-2000:] + errors.read()[-3000:]
    found = list(home.glob("outputs/sweeps/*/*/run.json")) or list(home.glob("multirun/**/checkpoints/last.ckpt"))
    assert len(found) == jobs, (len(found), command)
    left = started + elapsed - announced if announced else 0.0
    return elapsed, left, "".join(said)


def rerun_alone(command: list[str], jobs: int, home: Path) -> None:
    """Four jobs of a sweep, picked at random, run again one by one: weights and every evaluation are to be equal."""
    run(command, jobs, home)
    for path in random.Random(0).sample(sorted(home.glob("outputs/sweeps/*/*/run.json")), 4):
        known = json.loads(path.read_text())
        threads = f"runtime.threads={known['runtime']['threads']}"
        alone = home / "alone" / path.parent.name
        subprocess.run(
            hydratune(*known["overrides"], threads, f"hydra.run.dir='{alone}'"), cwd=home, check=True,
            capture_output=True,
        )  # fmt: skip
        again = json.loads((alone / "run.json").read_text())
        equal = all(known[k] == again[k] for k in ("history", "checkpoint"))
        print(f"alone again: {path.parent.name}: {'equal bit for bit' if equal else 'DIFFERS'}", flush=True)


def quality(home: Path, epochs: int) -> None:
    """Where the cell that halving chooses stands in the full grid."""
    grid = (f"freeze={STRATEGIES}", "seed=1,2,3")
    for name, more in (("whole", ()), ("halved", ("sweep.halving.factor=3",))):
        run(ours(home, epochs, True, *grid, *more), 72, home / name)
    whole, halved = (ranking.read(next((home / n / "outputs" / "sweeps").iterdir())) for n in ("whole", "halved"))
    best, chosen = whole.cells[0], next(c for c in whole.cells if c.settings == halved.cells[0].settings)
    for said, cell in (("best of the full grid", best), ("chosen by halving, in full", chosen)):
        print(
            f"{said}: {dict(cell.settings)}: val accuracy {cell.mean:.4f}, sd {cell.deviation:.4f}, n {len(cell.rows)}"
        )
    print(f"within one standard deviation: {best.mean - chosen.mean <= best.deviation}", flush=True)


def compare(title: str, commands: dict[str, list[str]], jobs: int, rounds: int) -> None:
    seen: dict[str, list[float]] = {name: [] for name in commands}
    expected: list[float] = []
    for _ in range(rounds):
        for name, command in commands.items():
            elapsed, left, said = seconds(command, jobs)
            seen[name].append(elapsed)
            print(f"{title}: {name} {elapsed:.1f} s", flush=True)
            found = re.search(rf"{jobs} jobs, about (\d+):(\d+)", said)
            if name == "hydratune" and found:
                expected.append((60 * int(found[1]) + int(found[2])) / left)
    show(f"{title}: seconds for {jobs} jobs, {rounds} rounds; {cpu_name()}", seen)
    if expected:
        print(f"what the planner predicted / what it took from there: {', '.join(f'{e:.2f}' for e in expected)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", nargs="+", default=["full", "quality", "head", "cached", "nothing"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        folders(home)
        made = hydratune("stage=pretrain", "model=resnet20", "epochs=5", "optimizer.lr=0.1", "hydra.run.dir=made")
        subprocess.run(made, cwd=home, check=True, capture_output=True)
        best = json.loads((home / "made" / "run.json").read_text())["checkpoint"]["path"]
        shutil.copy(home / "made" / best / "model.safetensors", home / "weights.safetensors")
        epochs, rounds = options.epochs, options.rounds
        grid = f"freeze={STRATEGIES}"
        if "full" in options.only:
            commands = {
                "hydratune": ours(home, epochs, True, grid),
                "hydratune, share=off": ours(home, epochs, True, grid, "sweep.share=off"),
                "hydratune, halving": ours(home, epochs, True, grid, "sweep.halving.factor=3"),
                "Lightning, tuned": peer(home, epochs, True, STRATEGIES, True),
                "Lightning, shipped": peer(home, epochs, True, STRATEGIES, False),
            }
            compare("lr x freeze", commands, 24, rounds)
            rerun_alone(commands["hydratune"], 24, home / "again")
        if "quality" in options.only:
            quality(home, epochs)
        for name, count, augment in (("head", epochs, True), ("cached", 20, False)):
            if name in options.only:
                commands = {
                    "hydratune": ours(home, count, augment, "freeze=head_only"),
                    "Lightning, tuned": peer(home, count, augment, "head_only", True),
                }
                compare(f"head_only, {count} epochs, {'' if augment else 'not '}augmented", commands, 6, rounds)
        if "nothing" in options.only:
            idle = hydratune(
                "-m", "stage=pretrain", "dataset.train=200", "dataset.val=100", "dataset.test=100", "steps=1",
                f"seed={','.join(map(str, range(16)))}", "sweep.share=off", "test=false",
            )  # fmt: skip
            one = [a.replace(f"seed={','.join(map(str, range(16)))}", "seed=0") for a in idle]
            values = [(seconds(idle, 16)[0] - seconds(one, 1)[0]) / 15 for _ in range(rounds)]
            print(f"seconds per further job that does nothing: {statistics.median(values):.2f} ({values})")


if __name__ == "__main__":
    main()
