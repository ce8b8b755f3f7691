"""Images with masks: a class number for every pixel, in a picture of the same size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydratune.core.paths import expanded
from hydratune.core.task import Task
from hydratune.core.types import ImageSpec
from hydratune.data.hashes import hashes
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_images import Found, OwnFiles
from hydratune.data.images.file_split import FileSplit, threads
from hydratune.data.images.frame import Frame, Size
from hydratune.data.images.image_stream import IGNORED, Split
from hydratune.data.images.mask_layout import mask_layout
from hydratune.data.images.walk import listed

MOST = 255  # classes; the number that is left says that a pixel is ignored


class MaskFiles:
    """Image files with the mask of each, both decoded when they are read."""

    labels = None

    def __init__(self, images: FileSplit, masks: Sequence[Path], ignore: int, classes: int) -> None:
        self._images, self._masks, self._ignore, self._classes = images, list(masks), ignore, classes
        self.summary, self.read, self.read_ahead = images.summary, images.read, images.read_ahead

    def __len__(self) -> int:
        return len(self._masks)

    def read_masks(self, ids: Tensor) -> Tensor:
        read = partial(read_mask, size=self._images.frame, ignore=self._ignore, classes=self._classes)
        with threads(self._images.workers) as pool:
            chosen = [(self._masks[i], self._images.paths[i]) for i in ids.tolist()]
            return torch.stack(list(pool.map(lambda own: read(own[0], picture=own[1]), chosen)))


class MemoryMasks:
    """The same, whole in memory: images [N, 3, H, W] and masks [N, H, W], uint8."""

    labels = None

    def __init__(self, images: Tensor, masks: Tensor, summary: str) -> None:
        self.images, self.masks, self.summary = images, masks, summary

    def __len__(self) -> int:
        return len(self.images)

    def read(self, ids: Tensor) -> Tensor:
        return self.images[ids]

    def read_masks(self, ids: Tensor) -> Tensor:
        return self.masks[ids]


class ImageMasks(OwnFiles):
    """images/ and masks/, with or without parts, or train/ and trainannot/; pairs by their names without the ending."""

    def __init__(
        self, task: Task, augment: Augment, root: str, classes: Sequence[str | int] | None = None, ignore: int = 255,
        **options: Any,
    ) -> None:  # fmt: skip
        """classes: names in the order of their numbers; null: class 0, class 1, ... as far as train has them.

        ignore: number of pixels that are neither trained on nor scored.
        """
        super().__init__(task, augment, **options)
        if not task.dense:
            raise ValueError("dataset.task: masks answer a dense task; dataset/task=segmentation is one")
        if not 0 <= ignore <= 255:
            raise ValueError(f"dataset.ignore={ignore}: a number of a pixel, from 0 to 255")
        self.root, self.ignore = expanded(root), ignore
        self.classes = None if classes is None else [str(name) for name in classes]
        if self.classes is not None and not 2 <= len(self.classes) <= MOST:
            raise ValueError(f"dataset.classes: {len(self.classes)} names; from 2 to {MOST}")

    @cached_property
    def _masks(self) -> dict[Path, Path]:
        """Image -> its mask."""
        return {image: mask for pairs in self._layout.parts.values() for image, mask in pairs}

    @cached_property
    def _layout(self) -> Any:
        return mask_layout(self.root)

    def index(self) -> Found:
        layout = self._layout
        parts = {}
        for part, pairs in layout.parts.items():
            parts[part] = ([image for image, _ in pairs], torch.zeros(len(pairs), dtype=torch.int64))
        left = f"{len(layout.others):,} masks belong to no image ({listed(layout.others)})"
        return Found(parts, self.classes or self._found(), [left] if layout.others else [])

    def _found(self) -> list[str]:
        """Names of the classes that the masks of train have."""
        masks = [mask for _, mask in self._layout.parts["train"]]
        with threads(self.workers) as pool:
            most = max(pool.map(partial(_largest, ignore=self.ignore), masks), default=-1)
        if most < 1:
            raise ValueError("dataset: the masks of train have one class at most; there is nothing to tell apart")
        return [f"class {i}" for i in range(most + 1)]

    def files(self) -> str:
        """The masks' contents as well."""
        masks = hashes(list(self._masks.values()), self.workers)
        names = [mask.name for mask in self._masks.values()]
        text = json.dumps([super().files(), self.ignore, list(zip(names, masks, strict=True))])
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self, test: bool) -> Sequence[str]:
        """Raises ValueError also for a mask of another size than its image, and for masks that are all void."""
        with threads(self.workers) as pool:
            for wrong in pool.map(_mismatch, self._masks.items()):
                if wrong:
                    raise ValueError(wrong)
        said = super().check(test)
        for part in ("train", "val", *(("test",) if test else ())):
            masks = [self._masks[path] for path in self._part(part)[0]]
            if all(_is_void(mask, self.ignore) for mask in masks):  # the first mask tells, as a rule
                raise ValueError(
                    f"dataset.ignore={self.ignore}: no mask of {part} has anything else, such as {masks[0]}"
                )
        return said

    def split(self, name: str) -> Split:
        paths, _ = self._part(name)
        images = self._streamed(name)
        masked = MaskFiles(images, [self._masks[path] for path in paths], self.ignore, len(self._indexed.classes))
        if not self._fits(name):
            return masked
        if name not in self._read_masks:
            self._read_masks[name] = masked.read_masks(torch.arange(len(masked)))
        return MemoryMasks(self.read(name)[0], self._read_masks[name], self.whence(name))

    @cached_property
    def _read_masks(self) -> dict[str, Tensor]:
        """Of splits that are kept in memory, as far as they have been asked for."""
        return {}

    def of_files(self, paths: Sequence[Path], labels: Tensor) -> Split:
        images = self.decoded_when_read(paths, labels)
        masked = MaskFiles(images, [self._masks[p] for p in paths], self.ignore, len(self._indexed.classes))
        if not self._room_for(len(paths)):
            return masked
        every = torch.arange(len(masked))
        return MemoryMasks(images.read(every), masked.read_masks(every), "")

    def split_summary(self, split: Split) -> str:
        whence = getattr(split, "summary", "")
        names = ", ".join(self._indexed.classes[:12]) + (" ..." if len(self._indexed.classes) > 12 else "")
        return f"{f'{whence}: ' if whence else ''}{len(split):,} images with masks; classes: {names}"

    def spec(self) -> ImageSpec:
        return super().spec()


def read_mask(path: Path, size: Size, ignore: int, classes: int, picture: Path | None = None) -> Tensor:
    """[H, W] uint8 class numbers, cut as its image is; 255: ignored. Raises ValueError for any other number.

    picture: the image; a mask that was drawn on one lying on its side is turned with it.
    """
    from PIL import Image

    from hydratune.data.images.decode import sizes_of

    drawn = Image.fromarray(_numbers(path))
    if picture is not None:
        stored, upright, turn = sizes_of(picture)
        if turn is not None and drawn.size == stored != upright:
            drawn = drawn.transpose(turn)
    cut = Frame.of(size).cut(drawn, Image.Resampling.NEAREST, ignore)
    mask = torch.from_numpy(np.array(cut))
    mask[mask == ignore] = IGNORED
    if bool(((mask >= classes) & (mask != IGNORED)).any()):
        number = int(mask[mask != IGNORED].max())
        raise ValueError(
            f"dataset: {path} has the class number {number}, and there are {classes} classes (dataset.ignore={ignore})"
        )
    return mask


def _numbers(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W] as they stand in the file: indices of a palette, or grey values."""
    from PIL import Image

    from hydratune.data.images.decode import turned

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1", "I", "I;16"):
                raise ValueError(
                    f"dataset: {path} is a picture in colours ({image.mode}); a mask holds class numbers, as grey "
                    "values or with a palette"
                )
            numbers = np.array(turned(image))
    except OSError as error:
        raise ValueError(f"dataset: {path} is not a readable mask ({error})") from None
    if numbers.max(initial=0) > IGNORED or numbers.min(initial=0) < 0:
        raise ValueError(f"dataset: {path} has numbers from {numbers.min()} to {numbers.max()}; a mask has 0 to 255")
    return numbers.astype(np.uint8)


def _largest(path: Path, ignore: int) -> int:
    numbers = _numbers(path)
    return int(numbers[(numbers != ignore) & (numbers != IGNORED)].max(initial=0))


def _is_void(path: Path, ignore: int) -> bool:
    numbers = _numbers(path)
    return bool(((numbers == ignore) | (numbers == IGNORED)).all())


def _mismatch(pair: tuple[Path, Path]) -> str | None:
    """A mask has the size of its image, the right way up or as it is stored."""
    from hydratune.data.images.decode import size_of, sizes_of

    try:
        stored, upright, _ = sizes_of(pair[0])
        own = size_of(str(pair[1]))
    except (OSError, ValueError):
        return None  # said when it is decoded
    if own in (stored, upright):
        return None
    return f"dataset: {pair[0]} is of {upright} pixels and its mask of {own}"
