"""Image files with labels: decoded once into memory where they fit, else as they are needed."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hydratune.data.archive import is_archive, unpacked
from hydratune.data.augment import Augment
from hydratune.data.dataset import carve, check_share, completed
from hydratune.data.image_dataset import ImageDataset, checked, pixel_statistics
from hydratune.data.image_stream import MemorySplit, Split
from hydratune.markup import as_shown
from hydratune.record.features import cache_home
from hydratune.types import DataSpec, Task

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff", ".gif")


FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "TIFF", "GIF")


def _threads(workers: int) -> ThreadPoolExecutor:
    """PIL loads its formats at first use, which several threads must not do at once."""
    from PIL import Image

    Image.init()
    return ThreadPoolExecutor(max(workers, 1))


class FileSplit:
    """Image files decoded when they are read, by a few threads (PIL decodes outside the interpreter lock)."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int, workers: int) -> None:
        self.paths, self.labels, self.size, self.workers = list(paths), labels, size, workers

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, ids: Tensor) -> Tensor:
        return next(self.read_ahead([ids]))

    def read_ahead(self, batches: Sequence[Tensor], ahead: int = 2) -> Iterator[Tensor]:
        """Batches in the order asked for, `ahead` of them being decoded while one is used."""
        with _threads(self.workers) as pool:
            waiting = []
            for batch in batches:
                waiting.append([pool.submit(decode, self.paths[i], self.size) for i in batch.tolist()])
                if len(waiting) > ahead:
                    yield self._stacked(waiting.pop(0))
            for futures in waiting:
                yield self._stacked(futures)

    def _stacked(self, futures: Sequence[Future[Tensor]]) -> Tensor:
        images = [f.result() for f in futures]
        return torch.stack(images) if images else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)


def decode(path: Path, size: int) -> Tensor:
    """[3, size, size] uint8: the shorter side resized to `size`, the middle cut out.

    Raises ValueError with the path for a file that is no whole image.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        # by their endings' formats alone: PIL would hand PostScript, whatever it is called, to another program
        with Image.open(path, formats=FORMATS) as file:
            file.draft("RGB", (size * 2, size * 2))  # a JPEG is decoded at the smallest sufficient scale
            image = ImageOps.exif_transpose(file)  # telephones store which way is up beside the pixels
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            if image.mode.startswith("I"):  # 16 bits, of which a plain conversion keeps nothing above 255
                image = Image.fromarray((np.array(image).astype(np.uint32) >> 8).astype(np.uint8))
            small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"dataset: {path} is not a readable image ({error})") from None


def _fault(path: Path, size: int) -> str | None:
    try:
        decode(path, size)
    except ValueError as error:
        return str(error)
    return None


def _within(folder: Path) -> Path:
    """Archives often hold one folder that holds all."""
    entries = [e for e in folder.iterdir() if not e.name.startswith((".", "__MACOSX"))]
    return entries[0] if len(entries) == 1 and any(e.is_dir() for e in entries[0].iterdir()) else folder


Files = tuple[list[Path], Tensor]  # and their labels


class FileImages(ImageDataset):
    """Base of the sets that are files with labels. Under `memory_mb` the decoded split is kept in memory."""

    def __init__(
        self,
        task: Task,
        augment: Augment,
        size: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        val_share: float,
        test_share: float,
        split_seed: int,
        memory_mb: int,
        workers: int,
        skip_broken: int = 0,
    ) -> None:
        super().__init__(task, augment)
        check_share("val_share", val_share)
        if test_share:
            check_share("test_share", test_share)
        self.size, self.mean, self.std = size, mean, std
        self.val_share, self.test_share, self.split_seed = val_share, test_share, split_seed
        self.memory_mb, self.workers, self.skip_broken = memory_mb, workers, skip_broken
        self._found: dict[str, tuple[list[Path], Tensor]] | None = None
        self._decoded: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def index(self) -> tuple[dict[str, tuple[list[Path], Tensor]], list[str]]:
        """({part: (files, labels)}, class names), of the parts that the source has: train, and perhaps val and test."""

    @cached_property
    def _indexed(self) -> tuple[dict[str, tuple[list[Path], Tensor]], list[str]]:
        return self.index()

    def files(self) -> str:
        """A digest of every file's class folder, name and size."""
        parts, names = self._indexed
        lines = [f"{part} {names[label]} {path.name} {path.stat().st_size}" for part, (paths, labels) in parts.items()
                 for path, label in zip(paths, labels.tolist(), strict=True)]  # fmt: skip
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _files(self) -> dict[str, tuple[list[Path], Tensor]]:
        """Every split; what the source has not is carved out of train."""
        if self._found is None:
            parts = dict(self._indexed[0])
            if self.skip_broken:
                parts = self._whole(parts)
            self._found = completed(parts, self.val_share, self.test_share, self._divided)
        return self._found

    def _divided(self, train: Files, share: float, name: str) -> tuple[Files, Files]:
        paths, labels = train
        both = carve(labels, share, self.split_seed + (name == "test"))
        left, own = (([paths[i] for i in ids.tolist()], labels[ids]) for ids in both)
        return left, own

    def _whole(self, parts: dict[str, tuple[list[Path], Tensor]]) -> dict[str, tuple[list[Path], Tensor]]:
        """Without the files that cannot be decoded, as many as may be: all are decoded to know them."""
        broken: list[str] = []
        result = {}
        with _threads(self.workers) as pool:
            for name, (paths, labels) in parts.items():
                said = list(pool.map(lambda path: _fault(path, self.size), paths))
                kept = [i for i, fault in enumerate(said) if fault is None]
                broken += [fault for fault in said if fault is not None]
                result[name] = ([paths[i] for i in kept], labels[kept])
        for fault in broken[:20]:
            print(as_shown(f"warning: left out: {fault}"))
        if len(broken) > self.skip_broken:
            raise ValueError(
                f"dataset.skip_broken={self.skip_broken}: {len(broken)} files are no whole images. {broken[0]}"
            )
        return result

    def spec(self) -> DataSpec:
        return self._spec

    @cached_property
    def _spec(self) -> DataSpec:
        """Once: pixels may have to be measured for it."""
        names = self._indexed[1]
        mean, std = self.mean, self.std
        if mean is None or std is None:
            mean, std = pixel_statistics(self._sample_of_train())
        return DataSpec((3, self.size, self.size), tuple(names), tuple(mean), tuple(std))

    def _sample_of_train(self) -> Tensor:
        if self._fits("train"):
            return self.read("train")[0]
        paths, labels = self._files()["train"]
        return FileSplit(paths, labels, self.size, self.workers).read(
            torch.arange(0, len(paths), max(len(paths) // 1000, 1))
        )

    def _fits(self, name: str) -> bool:
        return len(self._files()[name][0]) * 3 * self.size**2 <= self.memory_mb * 2**20

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._decoded:
            paths, labels = self._files()[name]
            if not paths:
                raise ValueError(f"dataset: the {name} split is empty")
            split = FileSplit(paths, labels, self.size, self.workers)
            batches = list(torch.arange(len(paths)).split(256))
            self._decoded[name] = (torch.cat(list(split.read_ahead(batches))), labels)
        return self._decoded[name]

    def split(self, name: str) -> Split:
        if self._fits(name):
            return MemorySplit(*checked(*self.read(name), name, self.spec()))
        paths, labels = self._files()[name]
        return FileSplit(paths, labels, self.size, self.workers)


class ImageFolder(FileImages):
    """A folder per class, or `train`, `val` (or `valid`) and `test` folders of those, or an archive of such folders."""

    def __init__(
        self,
        task: Task,
        augment: Augment,
        root: str,
        size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        memory_mb: int = 2048,
        workers: int = 4,
        skip_broken: int = 0,
    ) -> None:
        """size: pixels of the square that images are cut to; mean, std: per channel, null measures them on train.

        skip_broken: how many files that are no whole images may be left out, each named.
        """
        super().__init__(
            task, augment, size, mean, std, val_share, test_share, split_seed, memory_mb, workers, skip_broken
        )
        self.root = Path(root)

    def index(self) -> tuple[dict[str, tuple[list[Path], Tensor]], list[str]]:
        root = self.root
        if is_archive(root):
            root = _within(unpacked(root, cache_home() / "archives"))
        if not root.is_dir():
            raise ValueError(f"dataset.root={root}: no such folder; it should hold a folder of images per class")
        aliases = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
        folders = {p: root / a for p, names in aliases.items() for a in names if (root / a).is_dir()}
        if "train" not in folders:
            folders = {"train": root}
        names = sorted(e.name for e in os.scandir(folders["train"]) if e.is_dir() and not e.name.startswith("."))
        parts = {part: self._scan(folder, names) for part, folder in folders.items()}
        if not names or not parts["train"][0]:
            raise ValueError(
                f"dataset.root={self.root}: found no images; it should hold a folder of images per class "
                f"({', '.join(EXTENSIONS)})"
            )
        return parts, names

    @staticmethod
    def _scan(folder: Path, names: Sequence[str]) -> tuple[list[Path], Tensor]:
        foreign = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name not in names and e.name[0] != ".")
        if foreign:
            raise ValueError(f"dataset.root: {folder} has classes that train has not: {', '.join(foreign[:5])}")
        paths, labels = [], []
        for label, name in enumerate(names):
            files = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
            files = [f for f in files if f.suffix.lower() in EXTENSIONS]
            paths += files
            labels += [label] * len(files)
        return paths, torch.tensor(labels, dtype=torch.long)
