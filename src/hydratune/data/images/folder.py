"""A folder of image files, or an archive of one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hydratune.core.paths import cache_home
from hydratune.core.task import Task
from hydratune.data.archive import is_archive, unpacked
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_images import FileImages, Files, Found, Pixels, Shares
from hydratune.data.images.layout import layout_of
from hydratune.data.images.walk import listed
from hydratune.data.parts import is_hidden


class ImageFolder(FileImages):
    """A folder per class, or folders called train, val (dev) and test of those, or an archive of such folders."""

    def __init__(
        self,
        task: Task,
        augment: Augment,
        root: str,
        size: int = 224,
        white: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        duplicates: str = "tell",
        memory_mb: int = 2048,
        workers: int = 4,
        skip_broken: int = 0,
    ) -> None:
        """size: pixels of the square that images are cut to; mean, std: per channel, null measures them on train.

        white: the value that is white in images of more than 8 bits, null: what the file says.
        test_share: 0 for no test split. duplicates: of images that are there twice, tell or refuse.
        skip_broken: how many files that are no whole images may be left out, each named.
        """
        pixels, shares = Pixels(size, mean, std, white), Shares(val_share, test_share, split_seed)
        super().__init__(task, augment, pixels, shares, memory_mb, workers, skip_broken, duplicates)
        self.root = Path(os.path.expanduser(root))

    def index(self) -> Found:
        root = _within(unpacked(self.root, cache_home() / "archives")) if is_archive(self.root) else self.root
        layout = layout_of(root)
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
