"""A generation of games: what determines it, and that it is played once, by as many processes as there are cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydratune.config.fingerprint import fingerprint
from hydratune.data.boards.generations import MANIFEST, SHARD, read_shard
from hydratune.distributed import signals
from hydratune.experiment.play_processes import Report, by_processes
from hydratune.experiment.player import WEIGHTS, Player, play_shard
from hydratune.record import checkpoint
from hydratune.record.claim import locked
from hydratune.record.run import write_json
from hydratune.record.screen import Screen


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
        rate = _played(player, number, partial, screen, workers)
        _publish(partial, final, {"id": key, **content}, rate)
    return final


def _played(player: Player, number: int, partial: Path, screen: Screen, workers: int) -> float | None:
    """Play the shards that are not there. Returns the games a second; None where all were there."""
    own = player.dataset.play
    shards = range(-(-own.games // own.shard))
    missing = [shard for shard in shards if not (partial / SHARD.format(shard)).is_file()]
    started = time.perf_counter()
    if not missing:
        return None
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
    return rate


def _progress(player: Player, number: int, partial: Path, missing: Sequence[int], workers: int) -> Iterator[Report]:
    if workers > 1 and len(missing) > 1 and player.runtime.torch_device.type == "cpu":
        yield from by_processes(player, number, partial, missing, min(workers, len(missing)))
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


# ---- publication


def _publish(partial: Path, final: Path, content: Mapping[str, Any], rate: float | None) -> None:
    """By rename, the manifest written last."""
    shards = sorted(partial.glob("games-*.safetensors"))
    (partial / WEIGHTS).unlink(missing_ok=True)
    for rest in partial.glob(".*"):
        rest.unlink()
    statistics = statistics_of(shards, rate)
    files = {path.name: checkpoint.sha256(path) for path in shards}
    write_json(partial / MANIFEST, {**content, "statistics": statistics, "files": files})
    checkpoint.fsync(partial / MANIFEST)
    os.rename(partial, final)
    checkpoint.fsync(final.parent)


def statistics_of(shards: Sequence[Path], rate: float | None) -> dict[str, float]:
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
    return {**found, **({} if rate is None else {"games_per_second": rate})}
