"""Samples that are there twice: in train and in a split that measures it, or under two labels.

Both make a metric say something else than it seems to: what was trained on is not a test, and what has two labels
cannot be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

OPTIONS = ("tell", "refuse")
Sample = tuple[Hashable, Hashable]  # (its content, or a digest of that; its label)


def check_option(option: str) -> None:
    if option not in OPTIONS:
        raise ValueError(f"dataset.duplicates={option}: one of {', '.join(OPTIONS)}")


def duplicates(splits: Mapping[str, Sequence[Sample]], unit: str, option: str) -> list[str]:
    """A sentence for each kind that there is. `unit`: what samples are called, such as images.

    Raises ValueError instead where `option` is refuse.
    """
    found = []
    train = {content for content, _ in splits["train"]}
    for name, samples in splits.items():
        again = sum(content in train for content, _ in samples)
        if name != "train" and again:
            found.append(f"{again:,} of the {len(samples):,} {unit} of {name} are also in train")
    every = {sample for samples in splits.values() for sample in samples}
    labels = Counter(content for content, _ in every)
    if several := sum(count > 1 for count in labels.values()):
        found.append(f"{several:,} {unit} are there under more than one label")
    if found and option == "refuse":
        raise ValueError(f"dataset.duplicates=refuse: {'; '.join(found)}")
    return found
