"""Image files with labels: decoded once into memory where they fit, else as they are needed."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.markdown import as_shown
from hydratune.core.task import Task
from hydratune.core.types import ImageSpec
from hydratune.data.dataset import SPLITS, WHOLE
from hydratune.data.duplicates import duplicates
from hydratune.data.hashes import hashes
from hydratune.data.images.augment import Augment
from hydratune.data.images.divided import DividedImages, Files
from hydratune.data.images.file_split import FileSplit, threads
from hydratune.data.images.frame import Frame
from hydratune.data.images.image_dataset import check_statistics, pixel_statistics
from hydratune.data.images.image_stream import MemorySplit, Split


@dataclass(frozen=True)
class Found:
    """parts: those that the source has, train among them. summary: what whoever trains on it should know."""

    parts: dict[str, Files]
    classes: Sequence[str]
    summary: Sequence[str] = ()


class FileImages(DividedImages):
    """Base of the sets that are files with labels. Under `memory_mb` the decoded split is kept in memory."""

    def __init__(
        self, task: Task, augment: Augment, size: int | Sequence[int] = 224, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, memory_mb: int = 2048, workers: int = 4, **division: Any,
    ) -> None:  # fmt: skip
        """size: pixels of the square that images are cut to, or [height, width]; mean, std: per channel, null measures
        them on train.
        """
        super().__init__(task, augment, **division)
        check_statistics(mean, std, 3)
        for key, value in (("memory_mb", memory_mb), ("workers", workers)):
            if value < 0:
                raise ValueError(f"dataset.{key}={value}: at least 0")
        self.frame = Frame.of(size)
        self.size, self.mean, self.std, self.memory_mb, self.workers = size, mean, std, memory_mb, workers
        self.white: float | None = None  # the value that is white in images of more than 8 bits; None: what a file says
        self.skip_broken = 0  # how many files that are no whole images may be left out, each named
        self._decoded: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def index(self) -> Found:
        """Of the source, as it lies there."""

    def split_names(self) -> Sequence[str]:
        return [name for name in SPLITS if name in self._files]

    def evaluated_parts(self) -> Mapping[str, Split]:
        parts = self._indexed.parts
        if self.skip_broken:
            parts = self._whole(parts)
        named = {WHOLE: parts["train"]} if parts.keys() == {"train"} else parts
        return {name: self.of_files(paths, labels) for name, (paths, labels) in named.items()}

    def of_files(self, paths: Sequence[Path], labels: Tensor) -> Split:
        """Decoded into memory where they fit."""
        split = self.decoded_when_read(paths, labels)
        if self._room_for(len(paths)):
            return MemorySplit(_decoded(split), labels)
        return split

    def decoded_when_read(self, paths: Sequence[Path], labels: Tensor, summary: str = "") -> FileSplit:
        return FileSplit(paths, labels, self.frame, self.workers, self.white, summary)

    @cached_property
    def _indexed(self) -> Found:
        return self.index()

    @cached_property
    def _digests(self) -> dict[Path, str]:
        """Of every file's contents; empty for what is no file that can be read."""
        paths = [path for part, _ in self._indexed.parts.values() for path in part]
        return dict(zip(paths, hashes(paths, self.workers), strict=True))

    def files(self) -> str:
        """A digest of the classes, and of every file's part, class, name and contents; not of where they lie."""
        every = [
            (part, label, path.name, self._digests[path])
            for part, (paths, labels) in self._indexed.parts.items()
            for path, label in zip(paths, labels.tolist(), strict=True)
        ]
        return hashlib.sha256(json.dumps([list(self._indexed.classes), every]).encode()).hexdigest()

    def check(self, test: bool) -> Sequence[str]:
        """What is left alone, and what is there twice. What is measured on is decoded where it fits, else looked at."""
        for path, digest in self._digests.items() if not self.skip_broken else ():
            if not digest:
                raise ValueError(f"dataset: {path} is not a readable image (it is no file, or may not be read)")
        for name in ("val", "test") if test else ("val",):
            self._check_readable(name)
        samples = {
            name: [(self._digests[path], str(label)) for path, label in zip(paths, labels.tolist(), strict=True)]
            for name, (paths, labels) in self._files.items()
        }
        return [*self._indexed.summary, *duplicates(samples, "images", self.duplicates)]

    def _check_readable(self, name: str) -> None:
        from hydratune.data.images.decode import check_header

        paths, _ = self._part(name)
        if self._fits(name):
            self.read(name)
            return
        with threads(self.workers) as pool:
            for _ in pool.map(check_header, paths):
                pass

    @cached_property
    def _files(self) -> dict[str, Files]:
        """Every split; what the source has not is carved out of train."""
        parts = self._indexed.parts
        if self.skip_broken:
            parts = self._whole(parts)
        return self.divided(parts)

    def _part(self, name: str) -> Files:
        if name not in self._files:
            raise ValueError(
                f"dataset.test_share={self.test_share}: there is no test part, and none is divided off train; "
                "test=false reads none, dataset.test_share=0.1 makes one"
            )
        paths, labels = self._files[name]
        if not paths:
            raise ValueError(f"dataset: the {name} split is empty")
        return paths, labels

    def _whole(self, parts: dict[str, Files]) -> dict[str, Files]:
        """Without the files that cannot be decoded, as many as may be: all are decoded to know them."""
        broken: list[str] = []
        result = {}
        with threads(self.workers) as pool:
            for name, (paths, labels) in parts.items():
                faults = list(pool.map(self._fault, paths))
                kept = [i for i, fault in enumerate(faults) if fault is None]
                broken += [fault for fault in faults if fault is not None]
                result[name] = ([paths[i] for i in kept], labels[kept])
        for fault in broken:
            print(as_shown(f"warning: left out: {fault}"))
        if len(broken) > self.skip_broken:
            raise ValueError(
                f"dataset.skip_broken={self.skip_broken}: {len(broken)} files are no whole images. {broken[0]}"
            )
        return result

    def _fault(self, path: Path) -> str | None:
        from hydratune.data.images.decode import Unreadable, pixels

        try:
            pixels(path, self.frame, self.white)
        except Unreadable as error:
            return str(error)
        return None

    def spec(self) -> ImageSpec:
        return self._spec

    @cached_property
    def _spec(self) -> ImageSpec:
        """Once: pixels may have to be measured for it."""
        mean, std = self.mean, self.std
        if mean is None or std is None:
            measured = pixel_statistics(self._sample_of_train())
            mean, std = (measured[0] if mean is None else mean), (measured[1] if std is None else std)
        shape = (3, self.frame.height, self.frame.width)
        return ImageSpec(shape, tuple(self._indexed.classes), tuple(mean), tuple(std), fit=self.frame.fit)

    def _sample_of_train(self) -> Tensor:
        if self._fits("train"):
            return self.read("train")[0]
        split = self._streamed("train")
        return split.read(torch.arange(0, len(split), max(len(split) // 1000, 1)))

    def _fits(self, name: str) -> bool:
        return self._room_for(len(self._part(name)[0]))

    def _room_for(self, count: int) -> bool:
        return count * self.frame.bytes <= self.memory_mb * 2**20

    def _streamed(self, name: str) -> FileSplit:
        paths, labels = self._part(name)
        return self.decoded_when_read(paths, labels, self.whence(name))

    def whence(self, name: str) -> str:
        return self.divided_how(name, name in self._indexed.parts)

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._decoded:
            split = self._streamed(name)
            self._decoded[name] = (_decoded(split), split.labels)
        return self._decoded[name]

    def split(self, name: str) -> Split:
        return super().split(name) if self._fits(name) else self._streamed(name)


def _decoded(split: FileSplit) -> Tensor:
    """[N, 3, H, W] uint8"""
    return torch.cat(list(split.read_ahead(list(torch.arange(len(split)).split(256)))))


class OwnFiles(FileImages):
    """Base of the sets of a user's own files, which may be of any depth, and broken."""

    def __init__(
        self, task: Task, augment: Augment, white: float | None = None, skip_broken: int = 0, fit: str = "crop",
        **options: Any,
    ) -> None:  # fmt: skip
        """fit: crop, or letterbox for all of the image with grey margins. white: the value that is white in images of
        more than 8 bits, null: what the file says.

        skip_broken: how many files that are no whole images may be left out, each named.
        """
        super().__init__(task, augment, **options)
        if skip_broken < 0:
            raise ValueError(f"dataset.skip_broken={skip_broken}: at least 0")
        if white is not None and not 0 < white < math.inf:
            raise ValueError(f"dataset.white={white}: a number above 0, or null for what the files say")
        self.white, self.skip_broken, self.fit = white, skip_broken, fit
        self.frame = Frame.of(self.size, fit)
