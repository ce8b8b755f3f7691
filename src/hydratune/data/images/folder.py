"""A folder of image files, or an archive of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hydratune.core.paths import cache_home, expanded
from hydratune.core.task import Task
from hydratune.data.archive import is_archive, unpacked
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_images import Files, Found, OwnFiles
from hydratune.data.images.layout import layout_of
from hydratune.data.images.walk import listed
from hydratune.data.parts import is_hidden
from hydratune.data.text import labels


class ImageFolder(OwnFiles):
    """A folder per class, or folders called train, val (dev) and test of those, or an archive of such folders."""

    def __init__(
        self, task: Task, augment: Augment, root: str, classes: Sequence[str | int] | None = None, **options: Any
    ) -> None:
        """classes: names in the order of their numbers, of which some may have no folder; null: the folders' own."""
        super().__init__(task, augment, **options)
        self.root, self.classes = expanded(root), labels.given(classes)

    def index(self) -> Found:
        root = _within(unpacked(self.root, cache_home() / "archives")) if is_archive(self.root) else self.root
        layout = layout_of(root, self.classes)
        parts = {part: _numbered(images) for part, images in layout.parts.items()}
        count = "1 file or folder is" if len(layout.others) == 1 else f"{len(layout.others):,} files or folders are"
        summary = f"{count} left alone: hidden, called like no image, or in no class ({listed(layout.others)})"
        return Found(parts, layout.classes, [summary] if layout.others else [])


def _numbered(images: Mapping[str, Sequence[Path]]) -> Files:
    counts = torch.tensor([len(own) for own in images.values()])
    return [path for own in images.values() for path in own], torch.arange(len(images)).repeat_interleave(counts)


def _within(folder: Path) -> Path:
    """Archives often hold one folder that holds all."""
    entries = [e for e in folder.iterdir() if not is_hidden(e.name)]
    one = entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
    return one if any(e.is_dir() for e in one.iterdir()) else folder
