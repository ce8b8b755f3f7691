"""torchvision's image sets."""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.paths import expanded
from hydratune.core.task import Task
from hydratune.core.types import ImageSpec
from hydratune.data.dataset import check_share, stratified_split
from hydratune.data.hashes import hashes
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_images import FileImages, Found
from hydratune.data.images.image_dataset import ImageDataset, check_statistics, checked

# name: (torchvision class, height and width, channels, number of classes, arguments of its train and test parts)
_TRAIN_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SOURCES: dict[str, tuple[str, int, int, dict[str, dict[str, Any]]]] = {
    "mnist": ("MNIST", 28, 1, _TRAIN_FLAG),
    "fashion_mnist": ("FashionMNIST", 28, 1, _TRAIN_FLAG),
    "cifar10": ("CIFAR10", 32, 3, _TRAIN_FLAG),
    "cifar100": ("CIFAR100", 32, 3, _TRAIN_FLAG),
    "svhn": ("SVHN", 32, 3, {"train": {"split": "train"}, "test": {"split": "test"}}),
}
_IDX_NAMES: dict[str, tuple[str, ...]] = {
    "MNIST": ("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five", "6 - six", "7 - seven",
              "8 - eight", "9 - nine"),
    "FashionMNIST": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                     "Ankle boot"),
}  # fmt: skip


# Where torchvision puts the files of each
_FOLDERS = {
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "SVHN": "",
    "Flowers102": "flowers-102",
    "OxfordIIITPet": "oxford-iiit-pet",
}
_PARTS = ("train", "test")


class CarvedImages(ImageDataset):
    """Base of the sets that have a test part, and none for validation."""

    def __init__(
        self, task: Task, augment: Augment, val_share: float = 0.1, split_seed: int = 0, **options: Any
    ) -> None:
        """val_share: share of train that becomes validation."""
        super().__init__(task, augment, **options)
        check_share("val_share", val_share)
        self.val_share, self.split_seed = val_share, split_seed


class TorchvisionImages(CarvedImages):
    """A small torchvision set, whole in memory; validation is carved out of train."""

    def __init__(
        self, task: Task, augment: Augment, name: str, root: str, mean: Sequence[float], std: Sequence[float],
        download: bool = True, **carving: Any,
    ) -> None:  # fmt: skip
        """root: where the files lie or are downloaded to."""
        super().__init__(task, augment, **carving)
        if name not in _SOURCES:
            raise ValueError(f"dataset.name={name}: one of {', '.join(_SOURCES)}")
        check_statistics(mean, std, _SOURCES[name][2])
        self.name, self.root, self.mean, self.std = name, expanded(root), tuple(mean), tuple(std)
        self.download = download

    def spec(self) -> ImageSpec:
        _, size, channels, _ = _SOURCES[self.name]
        return ImageSpec((channels, size, size), self._read("train")[2], self.mean, self.std)

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        if name == "test":
            return self._read("test")[:2]
        return _read_carved(self.name, self.root, self.download, self.val_share, self.split_seed, self.files())[name]

    def whence(self, name: str) -> str:
        return "divided off train" if name == "val" else ""

    def files(self) -> str:
        """A digest of the names and contents of the files that are there."""
        known = [(path.name, digest) for path, digest in self._digests.items() if digest]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def check(self, test: bool) -> Sequence[str]:
        if test:
            checked(*self.read("test"), "test", self.spec())
        return ()

    @cached_property
    def _digests(self) -> dict[Path, str]:
        """Of every file; where they are absent they are downloaded first, if that may be."""
        class_name, *_, arguments = _SOURCES[self.name]
        if self.download and not all(path.is_file() for path in _files(class_name, self.root, "train")):
            for part in _PARTS:
                open_torchvision(class_name, self.root, True, arguments[part])
        paths = [path for part in _PARTS for path in _files(class_name, self.root, part)]
        return dict(zip(paths, hashes(paths, len(paths)), strict=True))

    def _read(self, part: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        return _read_part(self.name, self.root, self.download, part, self.files())


def _files(class_name: str, root: Path, part: str) -> list[Path]:
    """What a part is read from."""
    home = root / _FOLDERS[class_name]
    if class_name in _IDX_NAMES:
        return [home / _idx_file(part, kind) for kind in ("images-idx3", "labels-idx1")]
    names = {
        "CIFAR10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        "CIFAR100": {"train": ["train"], "test": ["test"]},
        "SVHN": {"train": ["train_32x32.mat"], "test": ["test_32x32.mat"]},
    }[class_name]
    return [home / name for name in names[part]]


# The jobs of a sweep that share a process read their data once.
@lru_cache(maxsize=4)
def _read_part(name: str, root: Path, download: bool, part: str, files: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(images [N, C, H, W] uint8, labels [N], class names) of a part that the source has; files: their digest."""
    class_name, size, _, arguments = _SOURCES[name]
    if class_name in _IDX_NAMES and all(path.is_file() for path in _files(class_name, root, part)):
        images, labels = (_read_idx(path) for path in _files(class_name, root, part))
        if images.shape != (len(labels), size, size):
            seen = f"images of {list(images.shape)} and {len(labels)} labels"
            raise ValueError(
                f"dataset: {root / _FOLDERS[class_name]} has {seen} in {part}, not [N, {size}, {size}] and N"
            )
        return images.unsqueeze(1), labels.long(), _IDX_NAMES[class_name]
    source = open_torchvision(class_name, root, download, arguments[part])
    images = torch.as_tensor(source.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(getattr(source, "targets", getattr(source, "labels", None))).long()
    names = tuple(str(n) for n in getattr(source, "classes", range(10)))
    return images.contiguous(), labels, names


@lru_cache(maxsize=2)
def _read_carved(
    name: str, root: Path, download: bool, share: float, seed: int, files: str
) -> dict[str, tuple[Tensor, Tensor]]:
    images, labels, _ = _read_part(name, root, download, "train", files)
    parts = zip(("train", "val"), stratified_split(labels, share, seed), strict=True)
    return {part: (images[ids], labels[ids]) for part, ids in parts}


def _idx_file(part: str, kind: str) -> str:
    return f"{'train' if part == 'train' else 't10k'}-{kind}-ubyte"


def _read_idx(path: Path) -> Tensor:
    """A file of the MNIST family: two zero bytes, type, number of dimensions, sizes as big-endian int32, then bytes.

    Read here because importing torchvision takes longer than the whole file does.
    """
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise ValueError(f"dataset: {path} cannot be read ({error.strerror})") from None
    dimensions = content[3] if len(content) > 3 else 0
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    start = 4 + 4 * dimensions
    if content[:3] != b"\0\0\x08" or len(content) != start + math.prod(sizes):
        raise ValueError(f"dataset: {path} is not a whole idx file of bytes")
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(sizes)


def open_torchvision(class_name: str, root: Path, download: bool, arguments: dict[str, Any]) -> Any:
    """The torchvision data set; where its files are absent and cannot be had, a sentence says what to put where."""
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, class_name)
    try:
        return make(str(root), download=False, **arguments)
    except RuntimeError as absent:
        if not download:
            raise ValueError(_absent(class_name, root, absent)) from None
    except ImportError as error:
        raise ValueError(f"dataset: reading {class_name} needs {error.name}: pip install {error.name}") from None
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # what is downloaded stays in its folder
    try:
        return make(str(root), download=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise ValueError(_absent(class_name, root, error)) from None


def _absent(class_name: str, root: Path, error: Exception) -> str:
    return (
        f"{class_name} is not in dataset.root={root} and could not be downloaded "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Put the files that "
        f"torchvision.datasets.{class_name} downloads into {root / _FOLDERS[class_name]}, or point dataset.root or "
        f"$HYDRATUNE_DATA at a folder that has them"
    )


class TorchvisionFiles(FileImages):
    """Flowers102 and OxfordIIITPet: files on disk, read as a folder is."""

    def __init__(
        self, task: Task, augment: Augment, name: str, root: str, download: bool = True, **options: Any
    ) -> None:
        super().__init__(task, augment, test_share=0, **options)
        if name not in ("flowers102", "oxford_pets"):
            raise ValueError(f"dataset.name={name}: flowers102 or oxford_pets")
        self.name, self.root, self.download = name, expanded(root), download

    def index(self) -> Found:
        if self.name == "flowers102":
            splits = {part: {"split": part} for part in ("train", "val", "test")}
            opened = {p: open_torchvision("Flowers102", self.root, self.download, a) for p, a in splits.items()}
            files = {p: (s._image_files, s._labels) for p, s in opened.items()}
        else:
            splits = {"train": {"split": "trainval"}, "test": {"split": "test"}}
            opened = {p: open_torchvision("OxfordIIITPet", self.root, self.download, a) for p, a in splits.items()}
            files = {p: (s._images, s._labels) for p, s in opened.items()}
        parts = {p: ([Path(f) for f in paths], torch.tensor(labels)) for p, (paths, labels) in files.items()}
        count = max(int(labels.max()) for _, labels in parts.values()) + 1
        names = getattr(opened["train"], "classes", None) or [str(i) for i in range(count)]
        return Found(parts, [str(n) for n in names])
