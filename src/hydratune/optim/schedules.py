"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

# Of BiT's rule: steps -> warm-up, and the steps at which the rate is divided by ten
BIT = {500: (100, (200, 300, 400)), 10_000: (500, (3_000, 6_000, 9_000)), 20_000: (500, (6_000, 12_000, 18_000))}


class Schedule(ABC):
    """Factor on every learning rate: linear warm-up, then `decay` over the share of steps after it."""

    def __init__(self, warmup_steps: int | float = 0) -> None:
        """warmup_steps: steps, or a share of them between 0.0 and 1.0."""
        if warmup_steps < 0 or (isinstance(warmup_steps, float) and warmup_steps > 1):
            raise ValueError(f"schedule.warmup_steps={warmup_steps}: steps, or a share of them between 0.0 and 1.0")
        self.warmup_steps = warmup_steps

    def num_steps(self, samples: int) -> int | None:
        """How long to train on so many samples, where the schedule says so itself; `steps` that are typed come first.

        None: as `epochs` says.
        """
        return None

    @abstractmethod
    def decay(self, progress: float) -> float:
        """progress: share of the steps after warm-up that are done, in [0, 1)."""

    def warmup(self, num_steps: int) -> int:
        """Steps of it."""
        return int(self.warmup_steps * num_steps) if isinstance(self.warmup_steps, float) else self.warmup_steps

    def factor(self, step: int, num_steps: int) -> float:
        """Pure: the factor for the update that takes step `step` (from 0) of `num_steps`."""
        warmup = self.warmup(num_steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.decay((step - warmup) / max(num_steps - warmup, 1))


class Constant(Schedule):
    def decay(self, progress: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to `final` (arXiv 1608.03983, without restarts)."""

    def __init__(self, warmup_steps: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup_steps)
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: a factor from 0 to 1")
        self.final = final

    def decay(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Linear(Schedule):
    """A straight line from 1 to `final`."""

    def __init__(self, warmup_steps: int | float = 0, final: float = 0.0) -> None:
        super().__init__(warmup_steps)
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: a factor from 0 to 1")
        self.final = final

    def decay(self, progress: float) -> float:
        return 1 + (self.final - 1) * progress


class MultiStep(Schedule):
    """Times `gamma` at each of `milestones`, shares of the steps after warm-up."""

    def __init__(
        self, warmup_steps: int | float = 0, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
    ) -> None:
        super().__init__(warmup_steps)
        if not 0 < gamma <= 1:
            raise ValueError(f"schedule.gamma={gamma}: a factor above 0, at most 1")
        if list(milestones) != sorted(milestones) or not all(0 <= m <= 1 for m in milestones):
            raise ValueError(f"schedule.milestones={list(milestones)}: shares of the steps, ascending, from 0 to 1")
        self.milestones, self.gamma = tuple(milestones), gamma

    def decay(self, progress: float) -> float:
        return self.gamma ** sum(progress >= m for m in self.milestones)


class OneCycle(Schedule):
    """Half a cosine up from 1 / `div`, half a cosine down to 1 / (`div` * `final_div`) (arXiv 1708.07120, as torch's
    OneCycleLR has it; momentum stays).
    """

    def __init__(self, warmup_steps: int | float = 0.3, div: float = 25.0, final_div: float = 1e4) -> None:
        super().__init__(warmup_steps)
        for key, value in (("div", div), ("final_div", final_div)):
            if value < 1:
                raise ValueError(f"schedule.{key}={value}: at least 1")
        self.div, self.final_div = div, final_div

    def decay(self, progress: float) -> float:
        return _between(1.0, 1 / (self.div * self.final_div), progress)

    def factor(self, step: int, num_steps: int) -> float:
        top = self.warmup(num_steps) - 1  # the step that has the whole rate
        if step < top:
            return _between(1 / self.div, 1.0, step / top)
        return self.decay((step - top) / max(num_steps - 1 - top, 1))


class WarmupStableDecay(Schedule):
    """1 until the last `decay_steps`, then down to `final` as the square root falls (arXiv 2404.06395, 2405.18392)."""

    def __init__(self, warmup_steps: int | float = 0.05, decay_steps: float = 0.2, final: float = 0.0) -> None:
        """decay_steps: share of the steps after warm-up."""
        super().__init__(warmup_steps)
        if not 0 < decay_steps <= 1:
            raise ValueError(f"schedule.decay_steps={decay_steps}: a share above 0, at most 1")
        if not 0 <= final <= 1:
            raise ValueError(f"schedule.final={final}: a factor from 0 to 1")
        self.decay_steps, self.final = decay_steps, final

    def decay(self, progress: float) -> float:
        done = max(progress - (1 - self.decay_steps), 0.0) / self.decay_steps
        return self.final + (1 - self.final) * (1 - math.sqrt(done))


def _between(first: float, last: float, progress: float) -> float:
    """Along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


class BitHyperRule(Schedule):
    """BiT's rule for fine-tuning (arXiv 1912.11370, section 3.3): length, warm-up and drops by the number of images.

    Below 20,000: 500 steps; below 500,000: 10,000; else 20,000, whatever `epochs` says. With another number of `steps`
    all of it is scaled to them.
    """

    def __init__(self) -> None:
        super().__init__()

    def num_steps(self, samples: int) -> int:
        return 500 if samples < 20_000 else 10_000 if samples < 500_000 else 20_000

    def decay(self, progress: float) -> float:
        raise AssertionError("its steps are absolute ones")

    def factor(self, step: int, num_steps: int) -> float:
        rule = num_steps if num_steps in BIT else min(BIT)
        warmup, drops = BIT[rule]
        at = (step + 1) * rule / num_steps
        return at / warmup if at <= warmup else 0.1 ** sum(at > drop for drop in drops)
