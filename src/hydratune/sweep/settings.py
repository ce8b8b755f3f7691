"""How a sweep is run: the keys of `sweep`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of_budget(text: str) -> float:
    """90s, 30m, 1.5h, 1h30m. Raises ValueError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(f"{number}{unit}" for number, unit in parts) != text or total <= 0:
        raise ValueError(f"sweep.budget={text}: a time such as 90s, 30m or 1h30m")
    return total


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943)."""

    factor: int | None = None  # of what runs, the best 1 in `factor` goes on at each rung; null: all run in full
    rungs: int = 2  # halts on the way, at num_steps / factor, num_steps / factor^2, ...
    asynchronous: bool = False  # nobody waits for the others at a halt (ASHA, arXiv 1810.05934)

    def __post_init__(self) -> None:
        if self.factor is not None and self.factor < 2:
            raise ValueError(f"sweep.halving.factor={self.factor}: at least 2, or null")
        if self.rungs < 1:
            raise ValueError(f"sweep.halving.rungs={self.rungs}: at least 1")
        if self.asynchronous and self.factor is None:
            raise ValueError("sweep.halving.asynchronous=true: needs sweep.halving.factor, such as 3")


@dataclass(frozen=True)
class SweepSettings:
    """jobs: worker processes at a time; auto: one per GPU, else the cores shared out."""

    on: str = "local"  # or workers (hydratune-work takes the jobs), slurm, ray
    wait: bool = True  # for the end; false: the cluster runs the command itself
    patience: float = 60.0  # seconds of silence after which a worker elsewhere is given up
    cluster: dict[str, Any] = field(default_factory=dict)  # of submitit's executor, or of ray.init
    jobs: int | str = "auto"
    zip: list[list[str]] = field(default_factory=list)  # keys whose values go in step, rather than all with all
    repeat: int = 1  # seeds of each job, from `seed` on
    share: str = "auto"  # auto: jobs that can share train side by side; off: each in a process of its own
    fail_fast: bool = False  # the first failure stops all
    may_diverge: bool = False  # a loss that is not finite ends its job, and is no failure of the sweep
    soup: str = "none"  # none, uniform or greedy: average the weights of jobs from one start (arXiv 2203.05482)
    interpolate: list[float] = field(default_factory=list)  # shares of the way from the winner's start to its end
    halving: Halving = field(default_factory=Halving)
    budget: str | None = None  # time that the sweep may take, such as 30m: how it is halved follows from it
    extend: bool = False  # beyond an edge of the grid, where the best value of a key lies there

    def __post_init__(self) -> None:
        if self.jobs != "auto" and not (isinstance(self.jobs, int) and self.jobs >= 1):
            raise ValueError(f"sweep.jobs={self.jobs}: auto, or a whole number, at least 1")
        for share in self.interpolate:
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"sweep.interpolate={self.interpolate}: shares from 0, the start, to 1, the end")
        if not all(isinstance(group, list) and len(group) > 1 for group in self.zip):
            raise ValueError(f"sweep.zip={self.zip}: lists of two keys or more, such as [[optimizer.lr,freeze]]")
        if isinstance(self.repeat, bool) or not isinstance(self.repeat, int) or self.repeat < 1:
            raise ValueError(f"sweep.repeat={self.repeat}: a whole number, at least 1")
        if self.budget is not None:
            seconds_of_budget(self.budget)
            if self.halving.factor is not None:
                raise ValueError(f"sweep.budget={self.budget}: finds sweep.halving.factor itself; give one of the two")
        if self.patience <= 0:
            raise ValueError(f"sweep.patience={self.patience}: above 0")
        if not self.wait and self.on not in ("slurm", "ray"):
            raise ValueError(f"sweep.wait=false: sweep.on={self.on} has nobody else to go on; slurm and ray have")
        for key, options in (
            ("on", ("local", "workers", "slurm", "ray")),
            ("share", ("auto", "off")),
            ("soup", ("none", "uniform", "greedy")),
        ):
            if getattr(self, key) not in options:
                raise ValueError(f"sweep.{key}={getattr(self, key)}: one of {', '.join(options)}")
