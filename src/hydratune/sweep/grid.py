"""Which jobs a sweep has, beside the product of all values: keys whose values go in step, and seeds of each job."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

Overrides = Sequence[str]
FOLD = "dataset.fold"
NO_FOLD = ("", "null")
REPLICATES = ("seed", FOLD)  # what a cell's jobs differ by: they are averaged over it


def cell_of(varies: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The settings of a job but for seed and fold. One of no fold is not averaged with folds."""
    return tuple(sorted((k, v) for k, v in varies.items() if k not in REPLICATES or (k == FOLD and v in NO_FOLD)))


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def in_step(
    jobs: Sequence[Overrides], groups: Sequence[Sequence[str]], values: Mapping[str, Sequence[str]]
) -> list[int]:
    """Places of the jobs in which the keys of each group have their first, their second, ... values together.

    values: of each swept key, in the order that they were typed. Raises ValueError for a key that is not swept, and for
    lists of different lengths.
    """
    wanted = []
    for group in groups:
        for key in group:
            if key not in values:
                near = difflib.get_close_matches(key, list(values), n=1) or [", ".join(values) or "none"]
                raise ValueError(f"sweep.zip: {key} is no key with several values; nearest: {near[0]}")
        counts = {key: len(values[key]) for key in group}
        if len(set(counts.values())) > 1:
            raise ValueError(f"sweep.zip: {', '.join(f'{k} has {n} values' for k, n in counts.items())}")
        wanted.append((list(group), set(zip(*(values[key] for key in group), strict=True))))
    kept, seen = [], set()
    for place, overrides in enumerate(jobs):
        own = {key_of(o): o.partition("=")[2] for o in overrides}
        fits = all(tuple(own.get(key) for key in group) in rows for group, rows in wanted)
        if fits and tuple(overrides) not in seen:
            kept.append(place)
            seen.add(tuple(overrides))
    return kept


def repeated(overrides: Overrides, times: int, seed: int) -> list[list[str]]:
    """A job with so many seeds, from `seed` on."""
    if times == 1:
        return [list(overrides)]
    others = [o for o in overrides if key_of(o) != "seed"]
    return [[*others, f"seed={seed + i}"] for i in range(times)]


def with_value(overrides: Overrides, key: str, value: str) -> list[str]:
    """The same job with another value of one key."""
    return [f"{o.partition('=')[0]}={value}" if key_of(o) == key else o for o in overrides]
