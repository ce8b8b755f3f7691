"""Which layer groups compute their activations again in the backward pass rather than keep them (engine.recompute)."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.modules.batchnorm import _NormBase

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import LayerGroup, Phase


def kept_because(groups: Sequence[LayerGroup], phase: Phase) -> dict[int, str]:
    """Of each group that gradients pass, by its place, why it keeps its activations; empty where it does not.

    A second pass would move BatchNorm's running statistics a second time. The head's activations are needed as soon as
    backward begins: to compute them again would save nothing.
    """
    owned = parameter_names(groups)
    lowest = next(i for i, names in enumerate(owned) if not phase.trainable.isdisjoint(names))
    result = {}
    for i, group in enumerate(groups[lowest:], lowest):
        running = any(isinstance(m, _NormBase) and m.track_running_stats for m in group.module.modules())
        result[i] = "backward begins there" if i == len(groups) - 1 else "BatchNorm" if running else ""
    return result


def recomputed(groups: Sequence[LayerGroup], phase: Phase, wanted: bool = True) -> frozenset[int]:
    """Places of the groups that compute their activations again. wanted: engine.recompute."""
    return frozenset(i for i, why in kept_because(groups, phase).items() if wanted and not why)


def sentence(groups: Sequence[LayerGroup], phase: Phase) -> str:
    """What is recomputed in a phase, and what is not, and why."""
    whys = kept_because(groups, phase)
    again = ", ".join(groups[i].name for i, why in whys.items() if not why) or "nothing"
    kept = ", ".join(f"{groups[i].name} ({why})" for i, why in whys.items() if why)
    return f"recomputed in the backward pass of phase {phase.name!r}: {again}; kept as computed: {kept}"
