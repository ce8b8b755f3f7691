"""Freeze strategies with several phases: what trains changes on the way."""

from __future__ import annotations

from collections.abc import Sequence

from hydratune.core.layer_groups import parameter_names
from hydratune.core.seeding import derive_seed
from hydratune.core.types import LayerGroup, Phase
from hydratune.freeze.phases import as_patience, count_of, from_group, head, phase, step_of, tiled


class LpFt:
    """freeze=lp_ft: a linear probe first, then everything, keeping the probed head (arXiv 2202.10054)."""

    def __init__(self, fraction: float = 0.5, probe_lr: float | None = None, patience: int | None = None) -> None:
        """fraction: share of the steps that the probe takes; probe_lr: its own learning rate, null: the optimizer's.

        patience: as for Gradual.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"freeze.fraction={fraction}: a share of the steps between 0 and 1")
        if probe_lr is not None and probe_lr <= 0:
            raise ValueError(f"freeze.probe_lr={probe_lr}: must be above 0")
        self.fraction, self.probe_lr, self.patience = fraction, probe_lr, as_patience(patience)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        turn = step_of("fraction", float(self.fraction), num_steps)
        return tiled(
            [
                phase(groups, 0, turn, head(groups), "probe", lr=self.probe_lr),
                phase(groups, turn, num_steps, from_group(groups, 0), "all"),
            ],
            self.patience,
        )


class FreezeUnfreeze:
    """freeze=freeze_unfreeze: the head alone until `step`, then everything at `lr_scale` (fastai's fine_tune)."""

    def __init__(self, step: int | float = 0.2, lr_scale: float = 0.5, patience: int | None = None) -> None:
        """step: a step, or a share of the steps; lr_scale: on every learning rate from there on.

        patience: as for Gradual.
        """
        if lr_scale <= 0:
            raise ValueError(f"freeze.lr_scale={lr_scale}: must be above 0")
        self.step, self.lr_scale, self.patience = step, lr_scale, as_patience(patience)
        step_of("step", step, 1)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        turn = step_of("step", self.step, num_steps)
        return tiled(
            [
                phase(groups, 0, turn, head(groups), "head"),
                phase(groups, turn, num_steps, from_group(groups, 0), "all", lr_scale=self.lr_scale),
            ],
            self.patience,
        )


class Gradual:
    """freeze=gradual: the head first, then one more group at a time from the top (ULMFiT, arXiv 1801.06146)."""

    def __init__(self, steps_per_group: int | float | None = None, patience: int | None = None) -> None:
        """steps_per_group: steps, or a share of them; null: as many for each number of groups.

        patience: evaluations without a better monitor that end a phase before that, all but the last one.
        """
        self.steps_per_group, self.patience = steps_per_group, as_patience(patience)
        if steps_per_group is not None:
            step_of("steps_per_group", steps_per_group, 1)
            if steps_per_group == 0:
                raise ValueError("freeze.steps_per_group=0: at least one step")

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        last = len(groups) - 1
        if self.steps_per_group is None:
            starts = [num_steps * i // len(groups) for i in range(len(groups))]
        else:
            each = max(step_of("steps_per_group", self.steps_per_group, num_steps), 1)
            starts = [min(i * each, num_steps) for i in range(len(groups))]
        ends = [*starts[1:], num_steps]
        phases = (
            phase(groups, a, b, from_group(groups, last - i), "head" if i == 0 else f"from {groups[last - i].name}")
            for i, (a, b) in enumerate(zip(starts, ends, strict=True))
        )
        return tiled(phases, self.patience)


class Progressive:
    """freeze=progressive: groups freeze from the bottom while training goes on (FreezeOut, arXiv 1706.04983)."""

    def __init__(self, fractions: Sequence[float] = (0.25, 0.5, 0.75), patience: int | None = None) -> None:
        """fractions: shares of the steps after which the first, second, ... group freezes; the head never does.

        patience: as for Gradual.
        """
        if list(fractions) != sorted(fractions) or not all(0 <= f <= 1 for f in fractions) or not fractions:
            raise ValueError(f"freeze.fractions={list(fractions)}: shares of the steps, ascending, between 0 and 1")
        self.fractions, self.patience = tuple(fractions), as_patience(patience)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        body = len(groups) - 1
        starts = [0, *(step_of("fractions", float(f), num_steps) for f in self.fractions[:body])]
        ends = [*starts[1:], num_steps]
        phases = (
            phase(groups, a, b, from_group(groups, i), "all" if i == 0 else f"from {groups[i].name}")
            for i, (a, b) in enumerate(zip(starts, ends, strict=True))
        )
        return tiled(phases, self.patience)


class Lisa:
    """freeze=lisa: the first group, the head and a few of the groups between, drawn anew every `interval` steps (LISA,
    arXiv 2403.17919).

    The draw is f(seed, number of the interval, group). What freezes loses its optimizer state, as in the paper.
    """

    def __init__(self, groups: int | float = 2, interval: int | float = 20, seed: int = 0) -> None:
        """groups: how many are drawn, or a share of those between; interval: steps, or a share of them."""
        count_of(groups, 1)
        step_of("interval", interval, 1)
        for key, value in (("groups", groups), ("interval", interval)):
            if not value:
                raise ValueError(f"freeze.{key}={value}: must be above 0")
        self.groups, self.interval, self.seed = groups, interval, seed

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        owned = parameter_names(groups)
        between = [i for i in range(1, len(groups) - 1) if owned[i]]
        count = max(count_of(self.groups, len(between)), 1)
        each = max(step_of("interval", self.interval, num_steps), 1)
        result = []
        for number, first in enumerate(range(0, num_steps, each)):
            seeds = {i: derive_seed(self.seed, "lisa", number, groups[i].name) for i in between}
            drawn = sorted(sorted(between, key=lambda i: seeds[i])[:count])
            trained = [name for i in (0, *drawn, len(groups) - 1) for name in owned[i]]
            label = ", ".join(groups[i].name for i in drawn) or "all"
            result.append(phase(groups, first, min(first + each, num_steps), trained, label))
        return tiled(result)
