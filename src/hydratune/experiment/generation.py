"""A generation of games: what determines it, and that it is played once, by as many processes as there are cores."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from hydratune.config.fingerprint import fingerprint
from hydratune.config.instantiate import build
from hydratune.config.job import Job
from hydratune.core.seeding import derive_seed
from hydratune.core.version import __version__
from hydratune.data.boards.generations import MANIFEST, SHARD, Generations, read_shard, write_shard
from hydratune.distributed import signals
from hydratune.distributed.runtime import Precision, Runtime, bf16_units
from hydratune.engine.state import digest
from hydratune.experiment.opinion import Opinion
from hydratune.games.selfplay import Rules, play
from hydratune.models.network import Network
from hydratune.record import checkpoint
from hydratune.record.claim import locked
from hydratune.record.run import write_json
from hydratune.record.screen import Screen

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Player:
    """Who plays, and how. tensors: the network's, by name."""

    job: Job
    dataset: Generations
    network: Network
    tensors: Mapping[str, Tensor]
    runtime: Runtime

    @property
    def rules(self) -> Rules:
        search = build(self.job.config.search, "search", self.job.trust)
        return Rules(self.dataset.game, search, self.dataset.rows, self.dataset.openings)

    def content(self, number: int) -> dict[str, Any]:
        """What determines a generation's games."""
        own, named = self.dataset, sorted(self.tensors.items())
        return {
            "generation": number,
            "seed": self.job.config.seed,
            "weights": fingerprint({"names": [n for n, _ in named], "values": digest(t for _, t in named)}),
            "game": self.job.config.dataset["game"],
            "search": self.job.config.search,
            **{key: getattr(own, key) for key in ("games", "rows", "shard", "openings")},
            "precision": str(self.runtime.chosen),
            "hydratune": __version__,
        }


def play_precision(runtime: Runtime) -> Runtime:
    """bf16 where the device has units for it, unless fp32 is asked for: games do not wait for a probe."""
    fast = runtime.precision != "fp32" and bf16_units(runtime.torch_device)
    return runtime.choose(Precision(torch.bfloat16 if fast or runtime.precision == "bf16" else torch.float32, False))


def made(player: Player, number: int, home: Path, screen: Screen, workers: int) -> Path:
    """The directory of a generation under `home`: found by what determines it, or played now.

    Raises Stopped where a signal asks for it; what was played stays, shard by shard.
    """
    content = player.content(number)
    key = fingerprint(content)[:16]
    final = home / key
    if (final / MANIFEST).is_file():
        return final
    with locked(home / f".{key}.lock", screen, f"generation {number}: another job plays it; waiting for it"):
        if (final / MANIFEST).is_file():
            return final
        partial = home / f".partial-{key}"
        partial.mkdir(parents=True, exist_ok=True)
        seconds = _played(player, number, partial, screen, workers)
        _publish(partial, final, {"id": key, **content}, seconds)
    return final


def _played(player: Player, number: int, partial: Path, screen: Screen, workers: int) -> float:
    """Play the shards that are not there. Returns the seconds that it took."""
    own = player.dataset
    shards = range(-(-own.games // own.shard))
    missing = [shard for shard in shards if not (partial / SHARD.format(shard)).is_file()]
    started = time.perf_counter()
    if not missing:
        return 0.0
    done = (len(shards) - len(missing)) * own.shard
    with screen.progress(f"generation {number}", done, own.games) as line:
        counts: dict[int, tuple[int, int]] = {}
        for shard, games, positions in _progress(player, number, partial, missing, workers):
            counts[shard] = games, positions
            finished, seen = (sum(c[i] for c in counts.values()) for i in (0, 1))
            rate = seen / (time.perf_counter() - started)
            line.show(done + finished, {"games": f"{done + finished:,}", "positions/s": f"{rate:,.0f}"})
        rate = sum(c[0] for c in counts.values()) / (time.perf_counter() - started)
        line.milestone(own.games, {"games/s": f"{rate:,.1f}"})
    return time.perf_counter() - started


Report = tuple[int, int, int]  # (shard, games of it that have ended, positions so far)


def _progress(player: Player, number: int, partial: Path, missing: Sequence[int], workers: int) -> Iterator[Report]:
    if workers > 1 and len(missing) > 1 and player.runtime.torch_device.type == "cpu":
        yield from _by_processes(player, number, partial, missing, min(workers, len(missing)))
        return
    threads = torch.get_num_threads()
    if player.runtime.torch_device.type == "cpu":
        torch.set_num_threads(1)  # as the processes have, so that the last bits are the same
    try:
        for shard in missing:
            yield from _here(player, number, partial, shard)
    finally:
        torch.set_num_threads(threads)


def _here(player: Player, number: int, partial: Path, shard: int) -> Iterator[Report]:
    """In this process; one report, at its end."""
    last = [(0, 0)]

    def seen(games: int, positions: int) -> None:
        last[0] = games, positions
        if (asked := signals.asked()) is not None:
            raise signals.Stopped(asked)

    play_shard(player, number, partial, shard, seen)
    yield (shard, *last[0])


def play_shard(player: Player, number: int, partial: Path, shard: int, seen: Any = None) -> None:
    """Write the shard, whole or not at all."""
    own = player.dataset
    games = range(shard * own.shard, min((shard + 1) * own.shard, own.games))
    player.network.to(player.runtime.torch_device)
    opinion = Opinion(player.network, own.game, player.runtime, own.rows)
    played = play(player.rules, opinion, games, generation_seed(player.job.config.seed, number), seen)
    path = partial / SHARD.format(shard)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write_shard(unfinished, played)
    checkpoint.fsync(unfinished)
    os.replace(unfinished, path)


def generation_seed(seed: int, number: int) -> int:
    return derive_seed(seed, "generation", number)


# ---- several processes


def _by_processes(player: Player, number: int, partial: Path, missing: Sequence[int], count: int) -> Iterator[Report]:
    """Each plays a shard with one thread, and takes the next. Raises Stopped where a signal asks for it."""
    from safetensors.torch import save_file

    save_file({n: t.detach().cpu().contiguous() for n, t in player.tensors.items()}, partial / WEIGHTS)
    told: Queue[tuple[int, str]] = Queue()
    task = {
        "job": player.job.as_json(), "number": number, "partial": str(partial),
        "precision": str(player.runtime.chosen), "device": str(player.runtime.torch_device),
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
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
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


# ---- publication


def _publish(partial: Path, final: Path, content: Mapping[str, Any], seconds: float) -> None:
    """By rename, the manifest written last."""
    shards = sorted(partial.glob("games-*.safetensors"))
    (partial / WEIGHTS).unlink(missing_ok=True)
    for rest in partial.glob(".games-*"):
        rest.unlink()
    statistics = statistics_of(shards, seconds)
    files = {path.name: checkpoint.sha256(path) for path in shards}
    game = str(content["game"]["_target_"]).rpartition(".")[2].lower()
    write_json(
        partial / MANIFEST,
        {**content, "rules": content["game"], "game": game, "statistics": statistics, "files": files},
    )
    checkpoint.fsync(partial / MANIFEST)
    os.rename(partial, final)
    checkpoint.fsync(final.parent)


def statistics_of(shards: Sequence[Path], seconds: float) -> dict[str, float]:
    """What somebody would look at to see whether games are as they should be."""
    lengths, first, draws, entropy, distinct, positions = [], 0.0, 0.0, 0.0, set(), 0
    for path in shards:
        played = read_shard(path)
        last = np.flatnonzero(np.append(np.diff(played.game) != 0, True))
        begins = np.append(0, last[:-1] + 1)
        lengths += (played.ply[last] + 1).tolist()
        outcome = np.where(played.ply[last] % 2 == 0, played.outcome[last], -played.outcome[last])
        first += float((outcome > 0).sum())
        draws += float((outcome == 0).sum())
        entropy -= float((played.policy * np.log(np.maximum(played.policy, 1e-30))).sum())
        positions += len(played.game)
        distinct |= {played.states[a : b + 1].tobytes() for a, b in zip(begins, last, strict=True)}
    games = len(lengths)
    found = {
        "games": games, "positions": positions, "distinct_games": len(distinct), "mean_length": sum(lengths) / games,
        "first_player_wins": first / games, "draws": draws / games, "policy_entropy": entropy / positions,
    }  # fmt: skip
    return {**found, **({"games_per_second": games / seconds, "seconds": seconds} if seconds else {})}
