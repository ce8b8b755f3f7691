"""stage=predict against the forward pass of a plain loop with its best DataLoader, in one process, taking turns.

    python scripts/bench/predict.py --data DIR [--repeats 5]

DIR holds cifar10_12k (10,000 of its pictures are predicted at 32 px by ResNet-9) and flowers5 (1,000 photographs at
224 px by ResNet-18). Networks are untrained: what they answer costs no other time. Ours decodes, predicts, and writes
every row of predictions.csv; its time is shown for the whole job, composing and loading included, and from the loaded
network to the last row. That is what the loop does, which decodes with torchvision's transforms in a DataLoader at
whichever of 0, 1, 2 and 4 workers is fastest, and throws its outputs away.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import hydratune
from hydratune.distributed.runtime import cpu_name

CASES = {
    "10,000 pictures, 32 px, resnet9_w16": ("cifar10_12k", 10_000, 32, "resnet9_w16", 128),
    "photographs, 224 px, resnet18": ("flowers5", 1_000, 224, "resnet18", 32),
}
WORKERS = (0, 1, 2, 4)


class Peer(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, paths: list[Path], size: int, mean: list[float], std: list[float]) -> None:
        from torchvision import transforms as T

        self.paths = paths
        self.transform = T.Compose([T.Resize(size), T.CenterCrop(size), T.ToTensor(), T.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self.paths[i]) as image:
            found: torch.Tensor = self.transform(image.convert("RGB"))
        return found


@torch.no_grad()
def loop(network: torch.nn.Module, data: Peer, batch: int, workers: int) -> float:
    began = time.perf_counter()
    loader = torch.utils.data.DataLoader(data, batch_size=batch, num_workers=workers)
    for images in loader:
        network(images)
    return time.perf_counter() - began


def measured(root: Path, home: Path, case: str, repeats: int) -> tuple[list[float], list[float], list[float], int]:
    """(seconds of the whole job, from the loaded network on, of the loop at its best, its workers)"""
    name, count, size, model, batch = CASES[case]
    paths = sorted(p for p in (root / name).rglob("*") if p.suffix in (".png", ".jpg"))[:count]
    folder = home / name
    folder.mkdir()
    for number, path in enumerate(paths):
        os.link(path, folder / f"{number:05d}{path.suffix}") if path.stat().st_dev == folder.stat().st_dev else (
            folder / f"{number:05d}{path.suffix}"
        ).symlink_to(path)
    run = hydratune.run(
        ["stage=pretrain", f"model={model}", "dataset=image_folder", f"dataset.root={root / 'flowers5'}",
         f"dataset.size={size}", f"batch_size={batch}", "steps=1", "runtime.precision=fp32", f"outputs={home}",
         "test=false", f"name={name}"], quiet=True,
    )  # fmt: skip
    loaded = hydratune.load(run.directory)
    spec = run.record.spec or {}
    data = Peer(sorted(folder.iterdir()), size, spec["mean"], spec["std"])
    network = loaded.network
    if "channels_last" in str((run.record.runtime or {}).get("precision")):
        network = network.to(memory_format=torch.channels_last)
    tried = {workers: loop(network, data, batch, workers) for workers in WORKERS}
    best = min(tried, key=tried.__getitem__)
    whole, ours, theirs = [], [], []
    for turn in range(repeats):
        began = time.perf_counter()
        made = hydratune.run(
            [
                "stage=predict",
                f"init_from={run.directory}",
                f"inputs={folder}",
                f"outputs={home}",
                f"name={name}{turn}",
            ],
            quiet=True,
        )
        whole.append(time.perf_counter() - began)
        ours.append(made.record.seconds or 0.0)
        theirs.append(loop(network, data, batch, best))
    return whole, ours, theirs, best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = Table(title=f"seconds, {options.repeats} turns each; {cpu_name()}")
    for column in (
        "what",
        "whole job",
        "stage=predict",
        "loop",
        "its workers",
        "ratio: median",
        "min",
        "max",
        "images/s",
    ):
        table.add_column(column)
    for case in CASES:
        with tempfile.TemporaryDirectory() as home:
            whole, ours, theirs, workers = measured(options.data.absolute(), Path(home), case, options.repeats)
            count = len(list(Path(home, CASES[case][0]).iterdir()))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        cells: list[Any] = [statistics.median(values) for values in (whole, ours, theirs)]
        shown = [f"{value:.2f}" for value in cells]
        spread = [f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))]
        table.add_row(case, *shown, str(workers), *spread, f"{count / cells[1]:,.0f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
