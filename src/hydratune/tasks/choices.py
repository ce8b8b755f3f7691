"""Options of tasks that are one of a few words."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError with the nearest word, or all of them."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        nearest = f"nearest: {near[0]}" if near else f"one of {', '.join(known)}"
        raise ValueError(f"dataset.task.{key}={value}: {nearest}")


def check_class_weights(weights: Sequence[float] | None) -> None:
    """Raises ValueError."""
    if weights is not None and not (all(0 <= w < math.inf for w in weights) and any(weights)):
        raise ValueError(f"dataset.task.class_weights={list(weights)}: a weight per class, at least 0, and not all 0")
