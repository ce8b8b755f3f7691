"""Image files read by number, decoded ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hydratune.data.images.frame import Frame, Size


def threads(workers: int) -> ThreadPoolExecutor:
    """PIL loads its formats at first use, which several threads must not do at once."""
    from PIL import Image

    Image.init()
    return ThreadPoolExecutor(max(workers, 1))


class FileSplit:
    """Image files decoded when they are read, by a few threads (PIL decodes outside the interpreter lock)."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        size: Size,
        workers: int,
        white: float | None = None,
        summary: str = "",
    ) -> None:
        self.paths, self.labels, self.frame, self.workers = list(paths), labels, Frame.of(size), workers
        self.white, self.summary = white, summary

    def __len__(self) -> int:
        return len(self.paths)

    def with_labels(self, labels: Tensor) -> FileSplit:
        return FileSplit(self.paths, labels, self.frame, self.workers, self.white, self.summary)

    def read(self, ids: Tensor) -> Tensor:
        return next(self.read_ahead([ids]))

    def read_ahead(self, batches: Sequence[Tensor], ahead: int = 2) -> Iterator[Tensor]:
        """Batches in the order asked for, `ahead` of them being decoded while one is used."""
        from hydratune.data.images.decode import decode

        with threads(self.workers) as pool:
            waiting = []
            for batch in batches:
                waiting.append([pool.submit(decode, self.paths[i], self.frame, self.white) for i in batch.tolist()])
                if len(waiting) > ahead:
                    yield self._stacked(waiting.pop(0))
            for futures in waiting:
                yield self._stacked(futures)

    def _stacked(self, futures: Sequence[Future[Tensor]]) -> Tensor:
        images = [f.result() for f in futures]
        return (
            torch.stack(images) if images else torch.empty(0, 3, self.frame.height, self.frame.width, dtype=torch.uint8)
        )
