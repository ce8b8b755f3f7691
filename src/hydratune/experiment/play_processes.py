"""Shards of games by several processes, each with one thread."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from safetensors.torch import save_file

from hydratune.distributed import signals
from hydratune.experiment.player import WEIGHTS, Player

Report = tuple[int, int, int]  # (shard, games of it that have ended, positions so far)


def by_processes(player: Player, number: int, partial: Path, missing: Sequence[int], count: int) -> Iterator[Report]:
    """Each plays a shard with one thread, and takes the next. Raises Stopped where a signal asks for it."""
    unfinished = partial / f".{WEIGHTS}.{os.getpid()}"
    save_file({n: t.detach().cpu().contiguous() for n, t in player.tensors.items()}, unfinished)
    os.replace(unfinished, partial / WEIGHTS)
    told: Queue[tuple[int, str]] = Queue()
    task = {
        "job": player.job.as_json(), "number": number, "partial": str(partial),
        "precision": str(player.runtime.chosen),
    }  # fmt: skip
    waiting = list(missing)
    with ExitStack() as stack:
        workers = [stack.enter_context(_process(task, i, told)) for i in range(count)]
        playing = {i for i, process in enumerate(workers) if _give(process, waiting)}
        while playing:
            try:
                who, line = told.get(timeout=0.2)
            except Empty:
                line = None
            if (asked := signals.asked()) is not None:
                raise signals.Stopped(asked)
            if line is None or (not line and who not in playing):
                continue
            if not line:
                raise RuntimeError(f"a process that plays games has ended with status {workers[who].wait()}")
            report = json.loads(line)
            yield report["shard"], report["games"], report["positions"]
            if report["done"] and not _give(workers[who], waiting):
                playing.discard(who)


def _give(process: subprocess.Popen[str], waiting: list[int]) -> bool:
    """The next shard, or the end. Returns whether it plays on."""
    assert process.stdin is not None
    if not waiting:
        process.stdin.close()
        return False
    with contextlib.suppress(BrokenPipeError):  # it has ended, which its last line will tell
        process.stdin.write(f"{waiting.pop(0)}\n")
        process.stdin.flush()
    return True


class _process:
    """A process that plays, killed when it is left; its lines go to the queue, and an empty one at its end."""

    def __init__(self, task: Mapping[str, Any], number: int, told: Queue[tuple[int, str]]) -> None:
        self._task, self._number, self._told = task, number, told

    def __enter__(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hydratune.experiment.play_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(self._task, default=str) + "\n")
            self._process.stdin.flush()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()
        return self._process

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            self._told.put((self._number, line))
        self._told.put((self._number, ""))

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
