"""Pictures of coloured squares, and where these are, as COCO writes it down; levels and boxes at random."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hydratune.core.objects import Objects
from hydratune.core.ragged import Ragged
from hydratune.core.types import Levels

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


RUN = ["dataset=coco", "dataset.root=boxes", "dataset.size=64", "dataset.task.width=16", "model=resnet9_w16",
       "model.width=8", "batch_size=4", "init_from=null", "runtime.precision=fp32", "runtime.layout=contiguous",
       "dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.5,0.5,0.5]", "stage=finetune", "optimizer=adamw"]  # fmt: skip


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return found


def targets(counts: list[int], size: int = 96, classes: int = 3, crowd: bool = False) -> Objects:
    g = torch.Generator().manual_seed(sum(counts) + 1)
    rows = []
    for _ in range(sum(counts)):
        corner, sides = torch.rand(2, generator=g) * size * 0.6, 8 + torch.rand(2, generator=g) * size * 0.3
        label = torch.randint(classes, (1,), generator=g)
        rows.append(torch.cat([corner, corner + sides, label, torch.tensor([float(crowd)])]))
    values = torch.stack(rows) if rows else torch.zeros(0, 6)
    return Objects(Ragged(values, torch.tensor(counts)), torch.full((len(counts), 2), float(size)))


def levels(count: int, size: int = 96) -> Levels:
    g = torch.Generator().manual_seed(2)
    kept = tuple(torch.randn(count, 6, size // s, size // s, generator=g) for s in (8, 16, 32))
    return Levels(kept, kept[-1])


def picture(chance: random.Random, width: int = 80, height: int = 60, count: int = 2) -> tuple[Image.Image, list[Any]]:
    """Squares of two colours on grey, and (class, left, top, right, bottom) of each."""
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    found = []
    for i in range(count):
        name = chance.choice(list(COLOURS))
        side = chance.randrange(14, 24)
        left, top = i * width // 2 + chance.randrange(width // 2 - side), chance.randrange(height - side)
        pixels[top : top + side, left : left + side] = COLOURS[name]
        found.append((name, left, top, left + side, top + side))
    return Image.fromarray(pixels), found


def coco_home(home: Path, parts: tuple[str, ...] = ("train", "val", "test"), count: int = 12, **options: int) -> Path:
    """images/ and annotations/instances_{part}.json; the ids of the categories have gaps."""
    chance = random.Random(0)
    (home / "annotations").mkdir(parents=True)
    (home / "images").mkdir()
    for part in parts:
        content: dict[str, Any] = {
            "images": [], "annotations": [], "categories": [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}],
        }  # fmt: skip
        for i in range(count):
            image, found = picture(chance, **options)
            image.save(home / "images" / f"{part}{i}.png")
            content["images"].append(
                {"id": 10 * i, "file_name": f"{part}{i}.png", "width": image.width, "height": image.height}
            )
            for name, left, top, right, bottom in found:
                box = {"bbox": [left, top, right - left, bottom - top], "category_id": {"blue": 7, "red": 3}[name]}
                content["annotations"].append(
                    {"id": len(content["annotations"]), "image_id": 10 * i, "iscrowd": 0, **box}
                )
        (home / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return home
