"""Samples per second of crop + flip + normalise: hydratune's stream and torchvision's PIL pipeline.

    python scripts/bench/loader.py [--repeats 5] [--rotate 15] [--size 32]

10,000 random images of 32x32 (as many bytes of another size), padding 4, batches of 128. The peer is torchvision's
usual pipeline in a DataLoader, with every worker count of 0, 1, 2, 4 tried and its best taken; its workers are started
before the clock. Both take turns, ten epochs of ours and one of theirs; ours pays for building its order and its random
numbers within the clock.

With --rotate, both turn the images first (bilinear). A second peer are torchvision's transforms of whole tensors, which
draw one angle, one crop and one flip for all images of a batch, where the others draw them for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from hydratune.core.types import ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.data.stream import Batches, Placement
from hydratune.distributed.runtime import Runtime, cpu_name

COUNT, BATCH = 10_000, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Peer(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, images: torch.Tensor, rotate: float) -> None:
        from torchvision import transforms as T

        self.images = images.permute(0, 2, 3, 1).numpy()
        turned = [T.RandomRotation(rotate, T.InterpolationMode.BILINEAR)] if rotate else []
        cut = [T.RandomCrop(images.shape[2], padding=4), T.RandomHorizontalFlip()]
        self.transform = T.Compose([*turned, *cut, T.ToTensor(), T.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), 0


def whole_batches(images: torch.Tensor, rotate: float) -> Iterator[tuple[torch.Tensor]]:
    """One pass of torchvision's transforms of tensors, a batch at a time."""
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            v2.RandomRotation(rotate, InterpolationMode.BILINEAR),
            v2.RandomCrop(images.shape[2], padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    for ids in torch.randperm(len(images)).split(BATCH):
        yield (transform(images[ids]),)


def rate(batches: Iterable[object]) -> float:
    started, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch.ids) if hasattr(batch, "ids") else len(batch[0])  # type: ignore[index]
    return seen / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rotate", type=float, default=0.0, help="degrees")
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    repeats, rotate, size = options.repeats, options.rotate, options.size
    warnings.simplefilter("ignore")
    Runtime().start()
    count = COUNT * 32**2 // size**2
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=g)
    spec = ImageSpec((3, size, size), tuple("0123456789"), MEAN, STD)
    split = MemorySplit(images, torch.zeros(count, dtype=torch.long))
    augment = Augment(flip=True, crop_padding=4, rotate=rotate)
    stream = ImageStream(split, spec, Batches(BATCH), Placement(torch.device("cpu")), 3, augment)
    loaders = {
        workers: torch.utils.data.DataLoader(
            Peer(images, rotate),
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for workers in (0, 1, 2, 4)
    }
    seen: dict[str, list[float]] = {"hydratune": [], **{f"torchvision, {w} workers": [] for w in loaders}}
    together = "torchvision, one angle for a batch"
    if rotate:
        seen[together] = []
    for turn in range(repeats + 1):
        n = stream.steps_per_epoch
        # ten epochs: one takes 60 ms, in which the peer's workers are still falling asleep
        rates = {"hydratune": rate(stream.batches(10 * turn * n, 10 * (turn + 1) * n))}
        rates |= {f"torchvision, {w} workers": rate(loader) for w, loader in loaders.items()}
        if rotate:
            rates[together] = rate(whole_batches(images, rotate))
        if turn:
            for name, value in rates.items():
                seen[name].append(value)
    best = max((n for n in seen if n not in ("hydratune", together)), key=lambda n: statistics.median(seen[n]))
    table = Table(title=f"samples per second, {repeats} repeats; {cpu_name()}, torch {torch.__version__}")
    for column in ("pipeline", "median", "min", "max", "hydratune is x times as fast: median", "min", "max"):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    for name, values in seen.items():
        ratios = [o / v for o, v in zip(seen["hydratune"], values, strict=True)]
        marked = f"{name}{' (its best)' if name == best else ''}"
        numbers = [f"{f(values):,.0f}" for f in (statistics.median, min, max)]
        table.add_row(marked, *numbers, *(f"{f(ratios):.1f}" for f in (statistics.median, min, max)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
