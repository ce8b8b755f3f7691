"""Outputs of frozen trunks, kept by what they were computed from: in memory, or on disk for later runs.

<key>/features.bin   rows one after the other, memory-mapped when read
      meta.json      shape, dtype, SHA-256; its modification time is that of the last use
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.record.checkpoint import fsync, sha256

PARTIAL = ".partial-"
STALE = 24 * 3600.0  # seconds after which what a killed process left half made is removed
_MEMORY: dict[str, Tensor] = {}  # of this process, so that jobs which follow one another share it


@dataclass(frozen=True)
class FeatureStore:
    """where: memory or disk. limit: bytes of all that is kept there; the least recently used goes first."""

    where: str
    limit: int
    directory: Path

    @staticmethod
    def key(*parts: Any) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def find(self, key: str) -> Tensor | None:
        """What is kept under the key, verified; a damaged entry is removed and None returned."""
        if key in _MEMORY:
            _MEMORY[key] = _MEMORY.pop(key)  # the latest used is the last
            return _MEMORY[key]
        path = self.directory / key
        try:
            meta = json.loads((path / "meta.json").read_text())
            if sha256(path / "features.bin") != meta["sha256"]:
                raise ValueError("not what was written")
            os.utime(path / "meta.json")
            dtype = getattr(torch, meta["dtype"])
            return _mapped(path / "features.bin", meta["shape"], dtype, meta["channels_last"])
        except FileNotFoundError:
            shutil.rmtree(path, ignore_errors=True)  # what a killed process or a tidy user left of it
            return None
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            print(f"warning: cached features {path} are damaged ({error}); they are computed again")
            shutil.rmtree(path, ignore_errors=True)
            return None

    def keep(self, key: str, rows: int, parts: Iterator[Tensor]) -> Tensor:
        """Collect `rows` rows from `parts` under the key."""
        (kept,) = self.keep_all([key], rows, ([part] for part in parts))
        return kept

    def keep_all(self, keys: Sequence[str], rows: int, parts: Iterator[Sequence[Tensor]]) -> list[Tensor]:
        """Collect `rows` rows from `parts`, of which each has a tensor for every key."""
        first = next(parts)
        sizes = [rows * part[0].numel() * part.element_size() for part in first]
        if self.where == "memory":
            kept = [_empty_like(part, rows) for part in first]
            _fill(kept, first, parts)
            while _MEMORY and sum(t.nbytes for t in _MEMORY.values()) + sum(sizes) > self.limit:
                _MEMORY.pop(next(iter(_MEMORY)))
            _MEMORY.update(zip(keys, kept, strict=True))
            return kept
        self.directory.mkdir(parents=True, exist_ok=True)
        self._make_room(sum(sizes))
        partials = [Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self.directory)) for _ in keys]
        try:
            mapped = [_created(p, part, rows, size) for p, part, size in zip(partials, first, sizes, strict=True)]
            _fill(mapped, first, parts)
            del mapped
            return [self._published(*each, rows) for each in zip(keys, partials, first, strict=True)]
        finally:
            for partial in partials:
                shutil.rmtree(partial, ignore_errors=True)

    def _published(self, key: str, partial: Path, first: Tensor, rows: int) -> Tensor:
        """What lies in `partial`, whole, under its key."""
        path, shape, last = partial / "features.bin", (rows, *first.shape[1:]), _channels_last(first)
        fsync(path)
        dtype = str(first.dtype).removeprefix("torch.")
        meta = {"shape": shape, "dtype": dtype, "channels_last": last, "sha256": sha256(path)}
        (partial / "meta.json").write_text(json.dumps(meta))
        fsync(partial / "meta.json")
        kept = _mapped(path, shape, first.dtype, last)  # stays whole, whoever evicts it
        with contextlib.suppress(OSError):  # another process was quicker with the same rows
            os.rename(partial, self.directory / key)
            fsync(self.directory)
        return kept

    def _make_room(self, size: int) -> None:
        """Remove the least recently used until `size` more bytes fit under the limit."""
        found: list[tuple[float, Path, int]] = []
        for path in self.directory.iterdir():
            with contextlib.suppress(OSError):  # another process is removing it
                if not path.name.startswith("."):
                    used = (path / "meta.json").stat().st_mtime
                    found.append((used, path, (path / "features.bin").stat().st_size))
                elif time.time() - path.stat().st_mtime > STALE:
                    shutil.rmtree(path, ignore_errors=True)
        sizes = {path: bytes_ for _, path, bytes_ in sorted(found)}
        while sizes and sum(sizes.values()) + size > self.limit:
            oldest = next(iter(sizes))
            shutil.rmtree(oldest, ignore_errors=True)  # whoever has it mapped keeps its pages
            del sizes[oldest]


def _channels_last(part: Tensor) -> bool:
    """Rows are kept in the layout that the next layer will want."""
    return part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()


def _empty_like(part: Tensor, rows: int) -> Tensor:
    layout = torch.channels_last if _channels_last(part) else torch.contiguous_format
    return torch.empty((rows, *part.shape[1:]), dtype=part.dtype, device=part.device, memory_format=layout)


def _created(partial: Path, part: Tensor, rows: int, size: int) -> Tensor:
    path = partial / "features.bin"
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here; in a mapping it would kill the process
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    return _mapped(path, (rows, *part.shape[1:]), part.dtype, _channels_last(part), create=True)


def _fill(kept: Sequence[Tensor], first: Sequence[Tensor], parts: Iterator[Sequence[Tensor]]) -> None:
    start = 0
    several: Sequence[Tensor] | None = first
    while several is not None:
        for features, part in zip(kept, several, strict=True):
            features[start : start + len(part)] = part
        start += len(several[0])
        several = next(parts, None)
    assert start == len(kept[0])


def _mapped(path: Path, shape: Any, dtype: torch.dtype, channels_last: bool, create: bool = False) -> Tensor:
    flat = torch.from_file(str(path), shared=create, size=math.prod(shape), dtype=dtype)
    if channels_last:
        rows, channels, height, width = shape
        return flat.view(rows, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(*shape)
