"""Which parameters a layer group owns."""

from __future__ import annotations

from collections.abc import Sequence

from hydratune.types import LayerGroup


def parameter_names(groups: Sequence[LayerGroup]) -> list[list[str]]:
    """Per group the names of its parameters; a tied parameter belongs to its earliest user."""
    seen: set[int] = set()
    result: list[list[str]] = []
    for group in groups:
        fresh = [(k, p) for k, p in group.module.named_parameters() if id(p) not in seen]
        seen.update(id(p) for _, p in fresh)
        result.append([group.names[k] for k, _ in fresh])
    return result
