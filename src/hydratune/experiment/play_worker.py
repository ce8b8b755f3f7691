"""A process that plays shards of games: its first line of input is the task, each further one a shard."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from queue import Queue
from typing import Any

EVERY = 0.5  # seconds between two reports


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # who started us decides
    task = json.loads(sys.stdin.readline())
    shards: Queue[int | None] = Queue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(shards, busy), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    from hydratune.config.job import Job
    from hydratune.experiment.player import play_shard, player_of

    player = player_of(Job.from_json(task["job"]), task["precision"], Path(task["partial"]))
    out, sys.stdout = sys.stdout, sys.stderr
    while (shard := shards.get()) is not None:
        told = _Told(shard, out)
        play_shard(player, task["number"], Path(task["partial"]), shard, told.seen)
        busy.clear()  # there is one shard at a time
        told.say(done=True)


def _listen(shards: Queue[int | None], busy: threading.Event) -> None:
    for line in sys.stdin:
        busy.set()
        shards.put(int(line))
    if busy.is_set():  # who started us is gone
        os._exit(1)
    shards.put(None)


class _Told:
    def __init__(self, shard: int, out: Any) -> None:
        self._shard, self._out, self._last, self._counts = shard, out, time.monotonic(), (0, 0)

    def seen(self, games: int, positions: int) -> None:
        self._counts = games, positions
        if time.monotonic() > self._last + EVERY:
            self._last = time.monotonic()
            self.say()

    def say(self, done: bool = False) -> None:
        games, positions = self._counts
        line = {"shard": self._shard, "games": games, "positions": positions, "done": done}
        print(json.dumps(line), file=self._out, flush=True)


if __name__ == "__main__":
    main()
