"""What trains and what that costs, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from hydratune.layer_groups import parameter_names
from hydratune.types import LayerGroup, Phase

COLUMNS = ("phase", "steps", "trains", "parameters", "share", "backward", "norms below the cut", "cached")


def rows(groups: Sequence[LayerGroup], phases: Sequence[Phase]) -> list[tuple[str, ...]]:
    """One row per phase."""
    sizes = {g.names[k]: p.numel() for g in groups for k, p in g.module.named_parameters()}
    total = sum(sizes.values())
    result: list[tuple[str, ...]] = []
    for phase in phases:
        trainable = sum(n for name, n in sizes.items() if name in phase.trainable)
        owners = [
            group.name if set(names) <= phase.trainable else f"{group.name} (in part)"
            for group, names in zip(groups, parameter_names(groups), strict=True)
            if not phase.trainable.isdisjoint(names)
        ]
        frozen_above = [
            group.name
            for group, names in list(zip(groups, parameter_names(groups), strict=True))[phase.cut :]
            if names and phase.trainable.isdisjoint(names)
        ]
        backward = f"stops at {groups[phase.cut].name}" if phase.cut else "runs through all"
        if frozen_above:
            backward += f", through frozen {', '.join(frozen_above)}"
        result.append(
            (
                phase.name,
                f"{phase.first_step}-{phase.last_step - 1}",
                ", ".join(owners) if len(owners) <= 4 else f"{owners[0]} to {owners[-1]}",
                f"{trainable:,} of {total:,}",
                f"{trainable / total:.1%}",
                backward,
                "frozen, in eval" if phase.cut else "none",
                "no",
            )
        )
    return result
