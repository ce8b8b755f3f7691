"""What names mean: train, val and test, and what no data set consists of. One rule for texts and images."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
LEFT_BEHIND = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found")  # by systems, beside what was meant


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is nobody's data: .ipynb_checkpoints, ._copy.jpg, __MACOSX."""
    return name.startswith(".") or name in LEFT_BEHIND


def part_called(name: str) -> str | None:
    """train, val or test, where the whole name says so, in any case of letters: Train, DEV, validation."""
    return next((part for part, names in NAMES.items() if name.lower() in names), None)


def part_named(name: str) -> str | None:
    """train, val or test, where a name says so at its beginning or its end: validation_matched, wiki.train, DEV."""
    words = [word for word in re.split(r"[-_. ]+", name) if word]
    called = [part_called(end) for end in (*words[:1], *words[-1:])]
    return next((part for part in called if part), None)


def refuse_twice(names: Iterable[str], where: str) -> None:
    """Raises ValueError where two different names of one folder mean the same part: train and Training, val and dev."""
    by_part: dict[str, set[str]] = {}
    for name in names:
        if part := part_called(name):
            by_part.setdefault(part, set()).add(name)
    for part, own in by_part.items():
        if len(own) > 1:
            raise ValueError(f"{where}: {' and '.join(sorted(own))} both mean {part}; which one is it?")
