"""What phases are made of: which names, which cut, what becomes of BatchNorm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from hydratune.core.layer_groups import parameter_names, running_norms
from hydratune.core.types import LayerGroup, Phase

NORMS = ("frozen", "statistics", "affine")


def phase(
    groups: Sequence[LayerGroup],
    first: int,
    last: int,
    trainable: Iterable[str],
    name: str = "",
    lr_scale: float = 1.0,
    lr: float | None = None,
) -> Phase:
    """A phase in which `trainable` train; its cut is the first group that owns one of them."""
    wanted = frozenset(trainable)
    owners = [i for i, names in enumerate(parameter_names(groups)) if wanted.intersection(names)]
    if not owners:
        raise ValueError("freeze: nothing would train")
    return Phase(first, last, wanted, cut=owners[0], name=name, lr_scale=lr_scale, lr=lr)


def from_group(groups: Sequence[LayerGroup], first_group: int) -> list[str]:
    return [name for names in parameter_names(groups)[first_group:] for name in names]


def head(groups: Sequence[LayerGroup]) -> list[str]:
    return from_group(groups, len(groups) - 1)


def count_of(wanted: int | float, available: int) -> int:
    """A number of groups, or a share of them. Raises ValueError below 0, or for a share above 1."""
    if wanted < 0 or (isinstance(wanted, float) and wanted > 1):
        raise ValueError(f"freeze.groups={wanted}: a number of groups, or a share of them between 0.0 and 1.0")
    return round(wanted * available) if isinstance(wanted, float) else min(wanted, available)


def step_of(key: str, wanted: int | float, num_steps: int) -> int:
    """A step, or a share of the steps. Raises ValueError below 0, or for a share above 1."""
    if wanted < 0 or (isinstance(wanted, float) and wanted > 1):
        raise ValueError(f"freeze.{key}={wanted}: steps, or a share of them between 0.0 and 1.0")
    return min(round(wanted * num_steps) if isinstance(wanted, float) else wanted, num_steps)


def tiled(phases: Iterable[Phase], patience: int | None = None) -> list[Phase]:
    """Without those that a short run leaves no step for; what is left covers the steps without gap or overlap.

    patience: of all but the last.
    """
    kept = [p for p in phases if p.first_step < p.last_step]
    assert kept and kept[0].first_step == 0 and all(a.last_step == b.first_step for a, b in pairwise(kept))
    return [*(replace(p, patience=patience) for p in kept[:-1]), kept[-1]]


def as_patience(patience: int | None) -> int | None:
    """Raises ValueError for what is no number of evaluations."""
    if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
        raise ValueError(f"freeze.patience={patience}: evaluations, at least 1, or null")
    return patience


def last_thaw(phases: Sequence[Phase]) -> int:
    """The first step of the last phase in which something trains that has not trained before."""
    trained: set[str] = set()
    step = 0
    for p in phases:
        step = step if p.trainable <= trained else p.first_step
        trained |= p.trainable
    return step


def checked(phases: Sequence[Phase], groups: Sequence[LayerGroup], num_steps: int) -> Sequence[Phase]:
    """The phases of a strategy, a user's own perhaps. Raises ValueError where they cannot be trained."""
    owned = parameter_names(groups)
    known = {name for names in owned for name in names}
    ends = [0, *(p.last_step for p in phases)]
    joined = all(p.first_step == end < p.last_step for p, end in zip(phases, ends, strict=False))
    if ends[-1] != num_steps or not joined:
        spans = ", ".join(f"{p.first_step}-{p.last_step}" for p in phases) or "none"
        raise ValueError(f"freeze: its phases ({spans}) do not cover the steps 0-{num_steps} one after the other")
    for p in phases:
        if unknown := sorted(p.trainable - known):
            raise ValueError(f"freeze: phase {p.name!r} trains {unknown[0]}, which this network has not")
        if odd := sorted(n for n, ratio in p.lr_ratios.items() if n not in p.trainable or not 0 < ratio < math.inf):
            raise ValueError(f"freeze: phase {p.name!r} has lr_ratios of {odd[0]}: above 0, and of what it trains")
        first = next((i for i, names in enumerate(owned) if not p.trainable.isdisjoint(names)), None)
        if first is None or p.cut > first:
            raise ValueError(f"freeze: phase {p.name!r} has its cut at {p.cut}, above what it trains")
        if as_patience(p.patience) is not None and p is phases[-1]:
            raise ValueError(f"freeze: phase {p.name!r} has patience and is the last; engine.patience ends a run")
    return phases


def with_norms(phases: Sequence[Phase], groups: Sequence[LayerGroup], norm: str) -> list[Phase]:
    """The phases under a policy for BatchNorm in frozen groups.

    frozen: it stands still with its group. statistics: its running mean and variance follow the new data. affine: its
    weight and bias train as well. Both move the cut down to the first BatchNorm. GroupNorm and LayerNorm keep no
    statistics: they are parameters like others.
    """
    if norm == "frozen":
        return list(phases)
    running = [i for i, group in enumerate(groups) if running_norms(group)]
    if not running:
        return list(phases)
    affine = frozenset(n for g in groups for _, names in running_norms(g) for n in names) if norm == "affine" else ()
    return [replace(p, trainable=p.trainable.union(affine), cut=min(p.cut, running[0]), norm=norm) for p in phases]


def set_mode(group: LayerGroup, names: Sequence[str], phase: Phase, beyond_cut: bool) -> None:
    """A group in which something trains is in train mode, but for its BatchNorms of which nothing does.

    names: the group's own parameters. One that has none (dropout, pooling, a tied layer) follows the cut.
    """
    trains = beyond_cut and (not names or not phase.trainable.isdisjoint(names))
    group.module.train(trains)
    for norm, own in running_norms(group):
        moves = trains and (not own or not phase.trainable.isdisjoint(own))
        norm.train(moves or phase.norm != "frozen")
