"""How a trial trains, and how often it looks up."""

from __future__ import annotations

from dataclasses import dataclass

POINTS = 50  # of a curve, at least


@dataclass(frozen=True)
class Cadence:
    """Every how many steps to evaluate, save and log."""

    eval_every: int
    save_every: int
    log_every: int


@dataclass(frozen=True)
class Settings:
    """How a trial trains: the keys of `engine`."""

    accumulate: int = 1  # micro-batches per step
    clip: float | None = None  # largest gradient norm
    ema: float | None = None  # decay of the weights' moving average
    patience: int | None = None  # evaluations without improvement before it stops
    eval_every: int | None = None  # steps; null: once an epoch
    save_every: int | None = None  # steps; null: with every evaluation. The best and the last are kept
    log_every: int | None = None  # steps; null: 50, or fewer so that a short run has 50 points
    keep: int = 1  # checkpoints, the newest first; the best is kept besides
    on_nonfinite: str = "stop"  # or skip: a step whose loss or gradient is NaN or Inf is not made
    recompute: bool = False  # keep no activations within groups without BatchNorm; backward computes them again
    skip_budget: int = 10  # such steps, before it stops all the same

    def __post_init__(self) -> None:
        for key in ("accumulate", "patience", "eval_every", "save_every", "log_every", "keep", "skip_budget"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"engine.{key}={value}: at least 1")
        if self.on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"engine.on_nonfinite={self.on_nonfinite}: stop or skip")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"engine.clip={self.clip}: must be above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"engine.ema={self.ema}: between 0 and 1")

    def cadence(self, steps_per_epoch: int, num_steps: int) -> Cadence:
        every = self.eval_every or steps_per_epoch
        return Cadence(every, self.save_every or every, self.log_every or min(max(num_steps // POINTS, 1), 50))
