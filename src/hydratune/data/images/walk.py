"""What lies under a folder of images: in order, behind links too, and without what systems leave behind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydratune.data.parts import is_hidden, part_called

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".webp", ".tif", ".tiff", ".gif",
)  # fmt: skip
NAMED = 3  # of what is counted, so many are named

Identity = tuple[int, int]  # of a folder, whatever the way to it: its device and number


@dataclass(frozen=True)
class Folder:
    """Paths relative to `path`, at any depth. images: files that are called so. others: what is left alone."""

    path: Path
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def loose(self) -> list[str]:
        """Images that lie in no folder of it."""
        return [image for image in self.images if "/" not in image]

    def inner(self) -> dict[str, Folder]:
        """What lies in each of the folders directly in it."""
        found = {name: Folder(self.path / name) for name in self.folders if "/" not in name}
        for kind in ("folders", "images", "others"):
            for path in getattr(self, kind):
                name, slash, rest = path.partition("/")
                if slash and name in found and rest:
                    getattr(found[name], kind).append(rest)
        return found


def walk(root: Path) -> Folder:
    """Raises ValueError for a folder that cannot be read, and for a name that is not UTF-8."""
    found = Folder(root)
    above = frozenset(_identity(str(folder)) for folder in (root, *root.resolve().parents))
    seen: set[tuple[str, Identity]] = set()
    stack: list[tuple[str, frozenset[Identity]]] = [("", above)]
    while stack:
        place, above = stack.pop()
        if place and place[-1] != "/":
            kind = found.images if place.lower().endswith(EXTENSIONS) else found.others
            kind.append(place)
            continue
        if place:
            # A link may lead to where it lies, and two of one class to the same folder
            identity = _identity(os.path.join(root, place))
            once = (_class_of(place), identity)
            if identity in above or once in seen:
                found.others.append(f"{place} (seen already)")
                continue
            seen.add(once)
            above |= {identity}
            found.folders.append(place[:-1])
        stack += [(path, above) for path in reversed(_entries(root, place, found.others))]
    _refuse_undecoded(root, [*found.folders, *found.images])
    return found


def _class_of(place: str) -> str:
    first, second, *_ = f"{place}/".split("/")
    return f"{first}/{second}" if part_called(first) else first


def _identity(folder: str) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(root: Path, place: str, others: list[str]) -> list[str]:
    """Of a folder, in order; folders end in a slash. What is hidden goes to `others`."""
    try:
        with os.scandir(os.path.join(root, place)) as scanned:
            entries = [(entry.name, _is_folder(entry)) for entry in scanned]
    except OSError as error:
        raise ValueError(f"dataset: {root / place} cannot be read ({error.strerror})") from None
    others += [f"{place}{name}" for name, _ in entries if is_hidden(name)]
    return [f"{place}{name}{'/' * inside}" for name, inside in sorted(entries) if not is_hidden(name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _refuse_undecoded(root: Path, paths: Sequence[str]) -> None:
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"dataset.root={root}: the name {os.fsencode(path)!r} is not UTF-8, so no record can hold it; rename it"
            ) from None


def listed(names: Sequence[str]) -> str:
    """Some of them, and how many more there are."""
    shown = ", ".join(os.fsencode(name).decode(errors="backslashreplace") for name in names[:NAMED])
    return shown + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def endings(others: Sequence[str]) -> str:
    """What else was found, by its endings; empty for nothing."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in others)
    return ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common(5))
