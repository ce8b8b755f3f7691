"""What trains and what that costs, as rows of two tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from hydratune.core.layer_groups import parameter_names, running_norms
from hydratune.core.types import LayerGroup, Phase
from hydratune.freeze.cost import PhaseCost

TRAINS = ("phase", "steps", "trains", "parameters", "share", "rate", "backward", "BatchNorm below")
PART = " (in part)"
COSTS = ("phase", "trunk's share of forward", "of its operations", "kept for backward", "step", "against none", "cache")
RANKING = ("group", "gradient, relative to its weights", "rank")


def ranking(norms: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Groups by the norms of their gradients before training, the largest first, as RANKING names them."""
    ranked = sorted(norms.items(), key=lambda item: -item[1])
    return [(name, f"{value:.4g}", str(rank)) for rank, (name, value) in enumerate(ranked, start=1)]


def trains(groups: Sequence[LayerGroup], phases: Sequence[Phase]) -> list[tuple[str, ...]]:
    """One row per phase, as TRAINS names them."""
    sizes = {g.names[k]: p.numel() for g in groups for k, p in g.module.named_parameters()}
    total = sum(sizes.values())
    owned = list(zip(groups, parameter_names(groups), strict=True))
    result: list[tuple[str, ...]] = []
    for phase in phases:
        trainable = sum(n for name, n in sizes.items() if name in phase.trainable)
        owners = [
            "" if phase.trainable.isdisjoint(names) else f"{group.name}{'' if set(names) <= phase.trainable else PART}"
            for group, names in owned
            if names
        ]
        result.append(
            (
                phase.name,
                _steps(phase),
                _runs(owners),
                f"{trainable:,} of {total:,}",
                _share(trainable / total),
                _rate(phase),
                _backward(groups, phase),
                _norms(groups, phase),
            )
        )
    return result


def _steps(phase: Phase) -> str:
    planned = f"{phase.first_step}-{phase.last_step - 1}"
    return planned if phase.patience is None else f"{planned}, patience {phase.patience}"


def _rate(phase: Phase) -> str:
    """In terms of the optimizer's own, and what has another one than its group."""
    kinds: dict[float, list[str]] = {}
    for name, ratio in sorted(phase.lr_ratios.items()):
        kinds.setdefault(ratio, []).append(".".join(name.split(".")[-2:]))
    others = [f"{ks[0] if len(set(ks)) == 1 else f'{len(ks)} tensors'} x {ratio:g}" for ratio, ks in kinds.items()]
    return ", ".join([f"x {phase.lr_scale:g}" if phase.lr is None else f"{phase.lr:g}", *others])


def _backward(groups: Sequence[LayerGroup], phase: Phase) -> str:
    """Where it stops, and because of what it goes so far."""
    owned = parameter_names(groups)
    lowest = next(i for i, names in enumerate(owned) if not phase.trainable.isdisjoint(names))
    trained = [n for n in owned[lowest] if n in phase.trainable]
    message = f"stops at {groups[lowest].name}" if lowest else "runs through all"
    if len(trained) < len(owned[lowest]):
        message += f", because of {trained[0]}" + (f" and {len(trained) - 1} more" if len(trained) > 1 else "")
    above = [(g, names) for g, names in list(zip(groups, owned, strict=True))[lowest + 1 :] if names]
    frozen = [g.name if phase.trainable.isdisjoint(names) else "" for g, names in above]
    return message + (f", through frozen {_runs(frozen)}" if any(frozen) else "")


def _runs(names: Sequence[str]) -> str:
    """`stem, layer2 to layer6, head`: names one after the other, and empty ones where there is a gap."""
    result: list[str] = []
    for some, run in groupby(names, bool):
        found = list(run) if some else []
        result += found if len(found) <= 4 else [f"{found[0]} to {found[-1]}"]
    return ", ".join(result)


def _norms(groups: Sequence[LayerGroup], phase: Phase) -> str:
    frozen = [g for g, names in zip(groups, parameter_names(groups), strict=True) if phase.trainable.isdisjoint(names)]
    if phase.norm != "frozen":
        return "statistics move" if phase.norm == "statistics" else "trains"
    return "frozen, in eval" if any(running_norms(g) for g in frozen) else "none"


def costs(
    phases: Sequence[Phase], measured: Sequence[PhaseCost], unfrozen: PhaseCost, cached: Sequence[str]
) -> list[tuple[str, ...]]:
    """One row per phase, as COSTS names them. unfrozen: what a step costs in which everything trains."""
    return [
        (
            phase.name,
            f"{cost.trunk_share:.0%}",
            f"{cost.trunk_operations:.0%}",
            f"{size(cost.saved_bytes)} a sample",
            f"about {1000 * cost.seconds:.1f} ms",
            f"x {cost.seconds / unfrozen.seconds:.2f}",
            kept,
        )
        for phase, cost, kept in zip(phases, measured, cached, strict=True)
    ]


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _share(share: float) -> str:
    """With as many digits as tell it from all."""
    digits = next((n for n in (1, 2, 3, 4) if share == 1 or f"{share:.{n}%}" != f"{1:.{n}%}"), 4)
    return f"{share:.{digits}%}"
