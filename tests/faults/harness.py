"""Real processes, and what is compared of what they leave."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hydratune.record import checkpoint
from tests import warm

HERE = Path(__file__).parent
PATIENCE = 900.0  # seconds; that something hangs, and not that the machine is busy
NET = [
    "trust=[faultnet]", "model._target_=faultnet.Net", "dataset.train=120", "dataset.val=60", "dataset.test=60",
    "batch_size=20", "runtime.precision=fp32", "runtime.layout=contiguous", "runtime.threads=1", "stage=pretrain",
    "epochs=3", "optimizer=adamw", "optimizer.lr=0.01", "engine.ema=0.9", "engine.save_every=2", "engine.log_every=3",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def command(*arguments: str, world: int = 1) -> list[str]:
    return [sys.executable, *(TORCHRUN if world > 1 else []), "-m", "hydratune", *arguments]


def run(
    *arguments: str, cwd: Path, world: int = 1, timeout: float = PATIENCE, **env: str
) -> subprocess.CompletedProcess[str]:
    whole = environment(**env)
    if world == 1 and warm.can_serve(whole):
        return warm.run(arguments, cwd, whole, timeout)
    return subprocess.run(
        command(*arguments, world=world), cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env=whole,
    )  # fmt: skip


def start(*arguments: str, cwd: Path, world: int = 1, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments, world=world), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(**env), start_new_session=True,
    )  # fmt: skip


def kill_all(process: subprocess.Popen[Any]) -> None:
    """SIGKILL for it and all that it has started: torchrun gives each of its processes a session of its own."""
    found, new = [process.pid], [process.pid]
    while new:
        listed = [subprocess.run(["pgrep", "-P", str(p)], capture_output=True, text=True).stdout.split() for p in new]
        new = [int(pid) for pids in listed for pid in pids]
        found += new
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def allowed(seconds: float) -> float:
    """What a machine that does nothing else may take, as much longer as this one has to do."""
    return seconds * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """seconds: after which it hangs, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def saved(directory: Path) -> list[int]:
    return checkpoint.steps(directory / "checkpoints")


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, but for what a clock or the machine decides."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says that a run was begun again
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    tags = [t for t in events.Tags()["scalars"] if not t.startswith(("speed", "time", "memory"))]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def differences(a: Path, b: Path, exact: bool = True) -> list[str]:
    """What is not the same in two finished runs: weights, moments, averages, metrics, TensorBoard."""
    found = []
    one, two = record(a), record(b)
    for key in ("metrics", "history", "checkpoint", "best_step") if exact else ("best_step",):
        if one.get(key) != two.get(key) or one.get(key) is None:
            found.append(f"{key}: {one.get(key)} {two.get(key)}")
    x, y = (checkpoint.load(d / "checkpoints" / f"step-{one['num_steps']:08d}") for d in (a, b))
    for part in ("model", "optimizer", "ema"):
        ours, theirs = getattr(x, part), getattr(y, part)
        if ours.keys() != theirs.keys():
            found.append(f"{part}: other names")
            continue
        same = torch.equal if exact else lambda s, t: torch.allclose(s, t, rtol=1e-3, atol=1e-5)
        found += [f"{part}: {n}" for n in ours if not same(ours[n], theirs[n])]
    if exact:
        shown, again = scalars(a), scalars(b)
        found += [f"TensorBoard: {t}" for t in shown.keys() | again.keys() if shown.get(t) != again.get(t)]
    return found
