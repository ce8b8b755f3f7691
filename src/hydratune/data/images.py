"""torchvision's image sets."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.data.augment import Augment
from hydratune.data.dataset import carve, check_share
from hydratune.data.folder import FileImages
from hydratune.data.image_dataset import ImageDataset
from hydratune.types import DataSpec, Task

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


class TorchvisionImages(ImageDataset):
    """A small torchvision set, whole in memory; validation is carved out of train."""

    def __init__(
        self,
        task: Task,
        augment: Augment,
        name: str,
        root: str,
        mean: Sequence[float],
        std: Sequence[float],
        download: bool = True,
        val_share: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        """root: where the files lie or are downloaded to; val_share: share of train that becomes validation."""
        super().__init__(task, augment)
        if name not in _SOURCES:
            raise ValueError(f"dataset.name={name}: one of {', '.join(_SOURCES)}")
        check_share("val_share", val_share)
        self.name, self.root, self.mean, self.std = name, Path(root), tuple(mean), tuple(std)
        self.download, self.val_share, self.split_seed = download, val_share, split_seed

    def spec(self) -> DataSpec:
        _, size, channels, _ = _SOURCES[self.name]
        names = _read_part(self.name, self.root, self.download, "train")[2]
        return DataSpec((channels, size, size), names, self.mean, self.std)

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        if name == "test":
            return _read_part(self.name, self.root, self.download, "test")[:2]
        return _read_carved(self.name, self.root, self.download, self.val_share, self.split_seed)[name]


# The jobs of a sweep that share a process read their data once.
@lru_cache(maxsize=4)
def _read_part(name: str, root: Path, download: bool, part: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(images [N, C, H, W] uint8, labels [N], class names) of a part that the source has."""
    class_name, _, _, arguments = _SOURCES[name]
    if class_name in _IDX_NAMES and (root / class_name / "raw" / _idx_file(part, "images-idx3")).is_file():
        folder = root / class_name / "raw"
        images, labels = (_read_idx(folder / _idx_file(part, kind)) for kind in ("images-idx3", "labels-idx1"))
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


def _idx_file(part: str, kind: str) -> str:
    return f"{'train' if part == 'train' else 't10k'}-{kind}-ubyte"


def _read_idx(path: Path) -> Tensor:
    """A file of the MNIST family: two zero bytes, type, number of dimensions, sizes as big-endian int32, then bytes.

    Read here because importing torchvision takes longer than the whole file does.
    """
    content = bytearray(path.read_bytes())
    dimensions = content[3]
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    start = 4 + 4 * dimensions
    if content[:3] != b"\0\0\x08" or len(content) != start + math.prod(sizes):
        raise ValueError(f"dataset: {path} is not a whole idx file of bytes")
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(sizes)


@lru_cache(maxsize=2)
def _read_carved(name: str, root: Path, download: bool, share: float, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    images, labels, _ = _read_part(name, root, download, "train")
    parts = zip(("train", "val"), carve(labels, share, seed), strict=True)
    return {part: (images[ids], labels[ids]) for part, ids in parts}


def open_torchvision(class_name: str, root: Path, download: bool, arguments: dict[str, Any]) -> Any:
    """The torchvision data set; where its files are absent and cannot be had, a sentence says what to put where."""
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, class_name)
    try:
        return make(str(root), download=False, **arguments)
    except RuntimeError as absent:
        if not download:
            raise ValueError(_absent(class_name, root, absent)) from None
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # what is downloaded stays in its folder
    try:
        return make(str(root), download=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise ValueError(_absent(class_name, root, error)) from None


def _absent(class_name: str, root: Path, error: Exception) -> str:
    folder = {
        "MNIST": "MNIST/raw",
        "FashionMNIST": "FashionMNIST/raw",
        "CIFAR10": "cifar-10-batches-py",
        "CIFAR100": "cifar-100-python",
        "SVHN": "",
        "Flowers102": "flowers-102",
        "OxfordIIITPet": "oxford-iiit-pet",
    }[class_name]
    return (
        f"{class_name} is not in dataset.root={root} and could not be downloaded "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Put the files that "
        f"torchvision.datasets.{class_name} downloads into {root / folder}, or point dataset.root or "
        f"$HYDRATUNE_DATA at a folder that has them"
    )


class TorchvisionFiles(FileImages):
    """Flowers102 and OxfordIIITPet: files on disk, read as a folder is."""

    def __init__(
        self,
        task: Task,
        augment: Augment,
        name: str,
        root: str,
        size: int = 224,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        download: bool = True,
        val_share: float = 0.1,
        split_seed: int = 0,
        memory_mb: int = 2048,
        workers: int = 4,
    ) -> None:
        super().__init__(task, augment, size, mean, std, val_share, 0.0, split_seed, memory_mb, workers)
        if name not in ("flowers102", "oxford_pets"):
            raise ValueError(f"dataset.name={name}: flowers102 or oxford_pets")
        self.name, self.root, self.download = name, Path(root), download

    def index(self) -> tuple[dict[str, tuple[list[Path], Tensor]], list[str]]:
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
        return parts, [str(n) for n in names]
