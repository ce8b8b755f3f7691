"""Labels as words: in what order they are numbered, and which of them are likely to be a mistake."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
MISSING = ("nan", "<na>")  # what a missing value becomes in a table that was written without care,
PERHAPS = ("none", "null", "na", "n/a")  # or may have become
NAMED = "dataset.classes=[...] names the classes that there are"


def given(classes: Sequence[str | int] | None) -> list[str] | None:
    """dataset.classes as words. Raises ValueError for fewer than two, and for one that is there twice or empty."""
    if classes is None:
        return None
    names = [str(name).strip() for name in classes]
    if len(names) < 2:
        raise ValueError(f"dataset.classes={names}: there is nothing to tell apart; null takes those of train")
    if wrong := [name for name in names if not name or names.count(name) > 1]:
        message = f"has {wrong[0]!r} more than once" if wrong[0] else "has an empty name"
        raise ValueError(f"dataset.classes={names}: {message}")
    return names


def in_order(found: Iterable[str]) -> list[str]:
    """Labels of train as they are numbered: by their value where all are numbers, else as words.

    Raises ValueError for one that stands for a missing value, and for two that are one number.
    """
    names = sorted(found)
    if missing := [name for name in names if name.lower() in MISSING]:
        raise ValueError(
            f"dataset: train has the label {missing[0]!r}, which is how a missing one is written; leave such rows out, "
            f"or {NAMED}"
        )
    values = {name: Decimal(name) for name in names if NUMBER.fullmatch(name)}
    seen: dict[Decimal, str] = {}
    for name, value in values.items():
        other = seen.setdefault(value, name)
        if other != name:
            raise ValueError(
                f"dataset: train has the labels {other!r} and {name!r}, which are one number and would be two classes; "
                f"write them alike (a gap in the column makes pandas write 1 as 1.0), or {NAMED}"
            )
    return sorted(names, key=values.__getitem__) if len(values) == len(names) else names


def doubts(counts: Mapping[str, int]) -> list[str]:
    """What is likely to be a mistake, a sentence each. counts: how often train has each label."""
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    several = [" and ".join(map(repr, sorted(names))) for names in alike.values() if len(names) > 1]
    sentences = [f"the labels {names} look alike, and are classes of their own" for names in several]
    missing = [(name, count) for name, count in counts.items() if name.lower() in PERHAPS]
    return sentences + [f"the label {n!r}, {c:,} times in train, may stand for a missing one" for n, c in missing]
