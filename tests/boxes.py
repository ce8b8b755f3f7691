"""Pictures of coloured squares, and where these are, as COCO writes it down."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


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
