"""Columns of predictions. Numbers are written as they are: rounding could make two of them one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LISTED = 100  # classes that have a column each; of more the next best are told
NEXT = 4


def others(names: Sequence[str], probabilities: Sequence[float]) -> dict[str, Any]:
    """A column for each class, or for the next best."""
    if len(names) <= LISTED:
        return {f"p({name})": p for name, p in zip(names, probabilities, strict=True)}
    order = sorted(range(len(names)), key=lambda i: -probabilities[i])[1 : NEXT + 1]
    pairs = [(f"class {rank}", names[i], f"probability {rank}", probabilities[i]) for rank, i in enumerate(order, 2)]
    return {key: value for a, name, b, p in pairs for key, value in ((a, name), (b, p))}


def named(names: Sequence[str], chosen: Sequence[bool]) -> str:
    """Those that are chosen."""
    return "; ".join(name for name, there in zip(names, chosen, strict=True) if there)
