"""Games that a network has played against itself, a generation after the other, as a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydratune.core.seeding import derive_seed
from hydratune.core.types import MOVE_FORBIDDEN, MOVE_UNKNOWN, PositionTargets, Summary
from hydratune.data.boards.board_dataset import BoardDataset, Positions
from hydratune.data.dataset import check_share
from hydratune.games.selfplay import Played

MANIFEST = "manifest.json"
SHARD = "games-{:05d}.safetensors"


@dataclass(frozen=True)
class Play:
    """How stage=selfplay plays. games: of a generation; rows: in lockstep; shard: games that are played and kept
    together; openings: moves at most with which a game begins that are drawn from the policy; precision: auto (bf16
    where the device has units for it), fp32 or bf16.
    """

    games: int = 1024
    rows: int = 256
    shard: int = 256
    openings: int = 4
    precision: str = "auto"

    def __post_init__(self) -> None:
        for key in ("games", "rows", "shard"):
            if getattr(self, key) < 1:
                raise ValueError(f"dataset.play.{key}={getattr(self, key)}: at least 1")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"dataset.play.precision={self.precision}: auto, fp32 or bf16")


class Generations(BoardDataset):
    """Positions of the newest generations; those of some games are held out to validate.

    window: generations that train. value_mix: share of the search's value in what the value learns, the rest is how the
    game ended. per_game: positions of a game that train, at most, drawn; they resemble each other. rehearse: another
    set of positions, whose training split trains beside them. directories: generations, the newest last;
    stage=selfplay names those that it has made, and says with `grows` that they follow from the first.
    """

    def __init__(
        self, play: Play, window: int = 4, value_mix: float = 0.5, per_game: int | None = None,
        val_share: float = 0.05, rehearse: BoardDataset | None = None, directories: Sequence[str] = (),
        grows: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(**settings)
        if window < 1:
            raise ValueError(f"dataset.window={window}: at least 1")
        if not 0 <= value_mix <= 1:
            raise ValueError(f"dataset.value_mix={value_mix}: a share from 0 to 1")
        check_share("val_share", val_share)
        if not 0 <= play.openings < self.game.longest:
            raise ValueError(
                f"dataset.play.openings={play.openings}: from 0 to {self.game.longest - 1} plies of {self.game.name}"
            )
        if per_game is not None and per_game < 1:
            raise ValueError(f"dataset.per_game={per_game}: at least 1")
        self.play, self.window, self.value_mix = play, window, value_mix
        self.per_game, self.val_share = per_game, val_share
        self.rehearse, self.grows = rehearse, grows
        self.directories = [Path(d) for d in directories]
        if rehearse is not None and rehearse.game.name != self.game.name:
            raise ValueError(f"dataset.rehearse.game: {rehearse.game.name}, and the games are {self.game.name}")

    def files(self) -> str:
        """Of all generations; where they follow from the first and the run's configuration, of that one."""
        ids = [manifest(d)["id"] for d in self.directories[: 1 if self.grows else None]]
        return " ".join([*ids, *([] if self.rehearse is None else [self.rehearse.files()])])

    def split_names(self) -> Sequence[str]:
        return ("train", "val") if self.directories else ()

    def split(self, name: str) -> Positions:
        """Of the newest generations; their number is part of the summary."""
        if not self.directories:
            raise ValueError("dataset.directories: stage=selfplay makes them; elsewhere name generations that it made")
        if name not in self.split_names():
            raise ValueError(f"dataset: self-play games have no {name} split; a set of solved positions has one")
        newest = self.directories[-self.window :]
        parts = [self._part(directory, name) for directory in newest]
        if not sum(map(len, parts)):
            raise ValueError(f"dataset: no game of {len(newest)} generations is in {name}; increase dataset.play.games")
        numbers = ", ".join(str(manifest(d)["generation"]) for d in newest)
        summary = f"{sum(map(len, parts)):,} positions of generation {numbers}"
        if name == "train" and self.rehearse is not None:
            parts.append(self.rehearse.split("train"))
            summary += f", and {len(parts[-1]):,} that are rehearsed"
        return Positions(
            np.concatenate([p.states for p in parts]), torch.cat([p.inputs for p in parts]),
            PositionTargets(*(torch.cat(t) for t in zip(*(p.targets for p in parts), strict=True))),
            torch.cat([p.kinds for p in parts]), summary=summary,
            identity=" ".join(manifest(d)["id"] for d in newest),
        )  # fmt: skip

    def news(self) -> Mapping[str, Summary]:
        """Of the newest generation, for TensorBoard."""
        if not self.directories:
            return {}
        made = manifest(self.directories[-1])
        return {"selfplay": {k: float(v) for k, v in made["statistics"].items()}}

    def check(self, test: bool) -> Sequence[str]:
        if test:
            raise ValueError("test: self-play games have no test split; test=false reads none")
        return ()

    def _part(self, directory: Path, name: str) -> Positions:
        made = manifest(directory)
        if made["game"] != self.game.name:
            raise ValueError(f"dataset.directories: {directory} holds games of {made['game']}, not of {self.game.name}")
        played = read_shards(directory)
        seed = made["seed"]
        held_out = np.array(
            [derive_seed(seed, "val", n) % 10_000 < 10_000 * self.val_share for n in range(made["games"])]
        )
        kept = held_out[played.game] == (name == "val")
        if name == "train" and self.per_game is not None:
            draw = np.random.Generator(np.random.Philox(key=derive_seed(seed, "per_game"))).random(len(kept))
            order = np.lexsort((draw, played.game))
            starts = np.searchsorted(played.game[order], played.game[order])
            kept[order[np.arange(len(order)) - starts >= self.per_game]] = False
        states = played.states[kept]
        value = self.value_mix * played.value[kept] + (1 - self.value_mix) * played.outcome[kept]
        legal = torch.from_numpy(self.game.legal(states))
        targets = PositionTargets(
            torch.from_numpy(played.policy[kept]),
            as_outcomes(torch.from_numpy(played.outcome[kept]), torch.from_numpy(value.astype(np.float32))),
            torch.where(legal, MOVE_UNKNOWN, MOVE_FORBIDDEN).to(torch.int8),
        )
        none = torch.full((len(states),), -1)
        return Positions(states, torch.from_numpy(self.game.inputs(states)), targets, none)


def as_outcomes(outcome: Tensor, value: Tensor) -> Tensor:
    """[P, 3] shares of loss, draw and win whose expectation is `value`: those that a draw leaves over are its own."""
    draws = torch.where(outcome == 0, 1 - value.abs(), torch.zeros_like(value))
    win = (1 - draws + value) / 2
    return torch.stack([1 - draws - win, draws, win], 1).clamp(0, 1)


def manifest(directory: Path) -> dict[str, Any]:
    """What a published generation says of itself. Raises ValueError."""
    try:
        found: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        return found
    except (OSError, ValueError):
        raise ValueError(f"dataset.directories: {directory} is no generation of games (it has no {MANIFEST})") from None


def write_shard(path: Path, played: Played) -> None:
    from safetensors.numpy import save_file

    columns = {f.name: getattr(played, f.name) for f in fields(Played)}
    save_file({**columns, "states": np.ascontiguousarray(played.states).view(np.int64)}, path)


def read_shard(path: Path) -> Played:
    from safetensors.numpy import load_file

    columns = load_file(path)
    return Played(**{**columns, "states": columns["states"].view(np.uint64)})


def read_shards(directory: Path) -> Played:
    shards = [read_shard(path) for path in sorted(directory.glob("games-*.safetensors"))]
    return Played(*(np.concatenate([getattr(s, f.name) for s in shards]) for f in fields(Played)))
