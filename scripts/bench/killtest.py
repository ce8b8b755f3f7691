"""Real processes, killed with SIGKILL at random moments and started again, until they end where they should have.

    python scripts/bench/killtest.py [--kills 200] [--seed 0] [--world 2] [--only detection]

Tiny networks with BatchNorm and dropout, augmentation, averaged weights, AdamW; every freezing strategy; images in
memory and decoded by two workers; one process or two. `--only detection` or `segmentation` does the same to a
RetinaNet, and to a U-Net with two losses, while everything trains; `--only selfplay` to generations of Tic-tac-toe that
two processes play, whose games are compared, too. Each variant is hit ten times on its way, ended, and
compared with the same run that nobody touched: weights, moments, averages, metrics, TensorBoard. Where a kill has hit
is read off the stack that the process writes just before.
"""

from __future__ import annotations

import argparse
import contextlib
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
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.boxes import coco_home  # noqa: E402
from tests.faults.harness import NET, TORCHRUN, differences, environment, kill_all  # noqa: E402
from tests.test_segmentation import scenes  # noqa: E402

STRATEGIES = {
    "none": [], "head_only": [], "last_groups": [], "first_groups": [], "surgical": ["freeze.first=stem"],
    "pattern": ["freeze.train=[body,head]"], "bias_only": [], "norm_only": [], "lp_ft": [], "freeze_unfreeze": [],
    "gradual": [], "progressive": [], "lisa": ["freeze.groups=1", "freeze.interval=5"],
    "lora": ["freeze.rank=2"],
}  # fmt: skip
# Starts hydratune; SIGUSR2 writes the stack of this moment to a file, from the signal handler itself.
STUB = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR2, file=open(sys.argv.pop(1), "w"), all_threads=False)
from hydratune.cli.main import main
if __name__ == "__main__":
    main()
"""
# Function on the stack -> the phase of the run that it means, the innermost first that is found
WHERE = {
    "_publish": "publishing a generation", "by_processes": "playing", "_first_generation": "before playing",
    "save": "a save", "prune": "a save", "evaluate_tails": "evaluation", "finish": "the end: test and report",
    "step": "a training step", "advance": "between steps", "run_jobs": "assembly", "_run": "composing",
}  # fmt: skip


def variants(world: int) -> list[tuple[str, list[str], int]]:
    every = []
    for i, (name, more) in enumerate(STRATEGIES.items()):
        files = ["dataset=image_folder", "dataset.root=IMAGES", "dataset.size=32", "dataset.memory_mb=0",
                 "dataset.workers=2", "dataset.augment.resized_crop=null"]  # fmt: skip
        moved = ["dataset.augment.flip=true", "dataset.augment.crop_padding=2", "dataset.augment.mixup=0.2"]
        kept = [o for o in NET if not (i % 3 == 2 and o.startswith("dataset."))]
        options = [*kept, *(files if i % 3 == 2 else moved), f"freeze={name}", *more, "epochs=4", "engine.accumulate=2"]
        every.append((name, options, world if world > 1 and i % 2 else 1))
    return every


DENSE = ["stage=finetune", "init_from=null", "model=resnet9_w16", "model.width=8", "dataset.size=64", "batch_size=8",
         "optimizer=adamw", "freeze=none", "epochs=6", "engine.accumulate=2", "engine.ema=0.9", "engine.eval_every=5",
         "engine.save_every=3", "dataset.augment.flip=true", "dataset.augment.crop_padding=4"]  # fmt: skip
SCENES = {
    "detection": [*DENSE, "dataset=coco", "dataset.root=BOXES", "dataset.task.width=16"],
    "segmentation": [*DENSE, "dataset=image_masks", "dataset.root=SCENES", "dataset.task.head=unet",
                     "dataset.task.dice=1"],
}  # fmt: skip
SELFPLAY = ["stage=selfplay", "dataset/game=tictactoe", "model=board_resnet", "model.blocks=2", "model.width=16",
            "init_from=null", "generations=4", "steps=40", "engine.eval_every=10", "engine.save_every=5",
            "batch_size=32", "search.simulations=16", "dataset.play.games=384", "dataset.play.rows=16",
            "dataset.play.shard=48", "dataset.val_share=0.2", "optimizer=adamw", "engine.ema=0.9", "runtime.threads=2",
            "runtime.precision=fp32", "runtime.layout=contiguous"]  # fmt: skip


def images(home: Path) -> None:
    from PIL import Image

    for i in range(160):
        path = home / f"class{i % 4}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (36, 36), (i, 60 * (i % 4), 255 - i)).save(path)


class Runner:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.hits: Counter[str] = Counter()
        self.hit = self.equal = 0
        (home / "stub.py").write_text(STUB)

    def start(self, options: list[str], directory: Path, world: int) -> subprocess.Popen[bytes]:
        launcher = TORCHRUN if world > 1 else []
        homes = {"IMAGES": "images", "BOXES": "boxes", "SCENES": "scenes"}
        arguments = [next((o.replace(n, str(self.home / p)) for n, p in homes.items() if n in o), o) for o in options]
        own = [f"outputs={directory}-outputs"] if "stage=selfplay" in options else ["test=true"]
        return subprocess.Popen(
            [sys.executable, *launcher, str(self.home / "stub.py"), str(self.home / "stack"), *arguments,
             f"hydra.run.dir={directory}", "resume=auto", *own],
            cwd=self.home, env=environment(FAULT_SLOW="0.03"), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=(self.home / "errors").open("wb"),
        )  # fmt: skip

    def finished(self, directory: Path) -> bool:
        path = directory / "run.json"
        return path.is_file() and json.loads(path.read_text()).get("status") == "complete"

    def whole(self, options: list[str], world: int) -> tuple[Path, float]:
        directory, began = self.home / "whole", time.monotonic()
        self.clear(directory)
        code = self.start(options, directory, world).wait()
        assert code == 0, (self.home / "errors").read_text()[-3000:]
        return directory, time.monotonic() - began

    def clear(self, directory: Path) -> None:
        for path in (directory, directory.with_name(f"{directory.name}-outputs")):
            shutil.rmtree(path, ignore_errors=True)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Where it is, then SIGKILL for all of it."""
        (self.home / "stack").write_text("")
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        target = int(children[0]) if children else process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signal.SIGUSR2)
        time.sleep(0.01)
        kill_all(process)
        if not process.returncode:  # it was quicker
            return
        self.hit += 1
        stack = (self.home / "stack").read_text()
        found = next((said for name, said in WHERE.items() if f" in {name}\n" in stack), "imports")
        self.hits[found] += 1


def other_games(whole: Path, broken: Path) -> list[str]:
    """Generations whose games are not the same ones."""
    made = []
    for directory in (whole, broken):
        path = directory / "generations.json"
        names = json.loads(path.read_text())["generations"] if path.is_file() else []
        made.append([json.loads((Path(name) / "manifest.json").read_text())["files"] for name in names])
    return [f"generation {i + 1}: other games" for i, (a, b) in enumerate(zip(*made, strict=True)) if a != b]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--only", choices=[*SCENES, "selfplay"])
    options = parser.parse_args()
    chance = random.Random(options.seed)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as place:
        runner = Runner(Path(place))
        images(runner.home / "images")
        wrong: list[str] = []
        done = variants(options.world)
        if options.only == "selfplay":
            done = [("selfplay", SELFPLAY, 1)]
        elif options.only:
            coco_home(runner.home / "boxes", count=40)
            scenes(runner.home, count=40)
            done = [(options.only, SCENES[options.only], 1)]
        chance.shuffle(done)
        rounds = 0
        while runner.hit < options.kills:
            name, arguments, world = done[rounds % len(done)]
            rounds += 1
            whole, seconds = runner.whole([*arguments, f"seed={rounds}"], world)
            broken = runner.home / "broken"
            runner.clear(broken)
            before = runner.hit
            while runner.hit - before < 10 and runner.hit < options.kills and not runner.finished(broken):
                process = runner.start([*arguments, f"seed={rounds}"], broken, world)
                # most of the kills fall into what comes after the start
                time.sleep(seconds * (chance.uniform(0.02, 1) if chance.random() < 0.3 else chance.uniform(0.5, 1)))
                runner.kill(process)
            code = runner.start([*arguments, f"seed={rounds}"], broken, world).wait()
            kills = runner.hit - before
            if code == 0:
                unequal = [*differences(whole, broken), *other_games(whole, broken)]
                unequal = [u for u in unequal if not u.endswith("games_per_second")]  # a speed, as of any machine
            else:
                unequal = [(runner.home / "errors").read_text()[-2000:]]
            runner.equal += 0 if unequal else kills
            wrong += [f"{name}: {u}" for u in unequal]
            said = "equal" if not unequal else f"DIFFERS: {unequal[0]}"
            console.print(f"{runner.hit}/{options.kills}  {name}, {world} process(es), {kills} kills: {said}")
        table = Table("hit", "kills", title="where the kills fell")
        for where, count in runner.hits.most_common():
            table.add_row(where, str(count))
        console.print(table)
        for line in wrong:
            console.print(line, markup=False)
        console.print(f"{runner.equal} of {runner.hit} kills: the run ended bitwise equal to one that was not touched")
        return 0 if runner.equal == runner.hit else 1


if __name__ == "__main__":
    sys.exit(main())
