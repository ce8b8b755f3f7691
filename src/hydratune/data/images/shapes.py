"""Generated pictures of shapes: no download, the same bytes on every machine.

All geometry is integer arithmetic on a 32 x 32 grid in half-pixel units, so nothing depends on how a machine rounds.
shapes10 asks which of ten shapes a picture shows; shapes100 asks for shape and texture together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.core.types import ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.image_dataset import ImageDataset

SIZE = 32
ONE = 256  # fixed point: sines, cosines and shape coordinates are in 1/256
_COS = torch.tensor([round(math.cos(2 * math.pi * i / 64) * ONE) for i in range(64)], dtype=torch.int32)
_SIN = torch.tensor([round(math.sin(2 * math.pi * i / 64) * ONE) for i in range(64)], dtype=torch.int32)

# u, v: coordinates in the shape's own frame, [n, 32, 32]; r: its radius, [n, 1, 1]; all int32 in 1/256 half pixels
SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v, r: _square(u) + _square(v) <= _square(r),
    "square": lambda u, v, r: torch.maximum(u.abs(), v.abs()) * 8 <= r * 7,
    "triangle": lambda u, v, r: (v * 2 <= r) & (u.abs() * 7 <= (v + r) * 4),
    "plus": lambda u, v, r: (torch.minimum(u.abs(), v.abs()) * 3 <= r) & (torch.maximum(u.abs(), v.abs()) <= r),
    "ring": lambda u, v, r: _between(_square(u) + _square(v), _square(r * 9 // 16), _square(r)),
    "ellipse": lambda u, v, r: _square(u) + _square(v * 9 // 4) <= _square(r),
    "star": lambda u, v, r: ((u // 64) * (v // 64)).abs() * 5 <= _square(r // 64),
    "half": lambda u, v, r: (_square(u) + _square(v) <= _square(r)) & (v >= 0),
    "frame": lambda u, v, r: _between(torch.maximum(u.abs(), v.abs()) * 8, r * 4, r * 7),
    "bars": lambda u, v, r: (u.abs() <= r) & _between(v.abs() * 8, r * 2, r * 6),
}
_SHAPE_LIMIT = {"star"}  # cut off at the radius

# x, y: pixel coordinates, [n, 32, 32]; p: a random phase, [n, 1, 1]; True is the lighter of the two tones
TEXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda x, y, p: torch.ones_like(x, dtype=torch.bool),
    "rows": lambda x, y, p: (y + p) % 4 < 2,
    "columns": lambda x, y, p: (x + p) % 4 < 2,
    "diagonal": lambda x, y, p: (x + y + p) % 6 < 3,
    "antidiagonal": lambda x, y, p: (x - y + p) % 6 < 3,
    "checks": lambda x, y, p: ((x + p) // 2 + y // 2) % 2 == 0,
    "fine_checks": lambda x, y, p: (x + y + p) % 2 == 0,
    "dots": lambda x, y, p: ((x + p) % 4 < 2) & ((y + p) % 4 < 2),
    "fine_rows": lambda x, y, p: (y + p) % 2 == 0,
    "grid": lambda x, y, p: ((x + p) % 4 == 0) | ((y + p) % 4 == 0),
}
# dataset.shift=feature: other textures in the same places
NEW_TEXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sparse_dots": lambda x, y, p: ((x + p) % 5 == 0) & ((y + p) % 5 == 0),
    "wide_rows": lambda x, y, p: (y + p) % 8 < 4,
    "wide_columns": lambda x, y, p: (x + p) % 8 < 4,
    "knight": lambda x, y, p: (x + 2 * y + p) % 5 < 2,
    "antiknight": lambda x, y, p: (2 * x - y + p) % 5 < 2,
    "wide_checks": lambda x, y, p: ((x + p) // 4 + y // 4) % 2 == 0,
    "waves": lambda x, y, p: (y + ((x + p) % 8 - 4).abs()) % 4 < 2,
    "bricks": lambda x, y, p: (y % 4 == 0) | ((x + 2 * (y // 4) + p) % 4 == 0),
    "fine_columns": lambda x, y, p: (x + p) % 2 == 0,
    "crosses": lambda x, y, p: ((x + p) % 5 == 0) | ((x + y) % 5 == 0),
}
SHIFTS = ("none", "input", "feature", "output")


class GeneratedImages(ImageDataset):
    """Base of the sets that are made as they are asked for."""

    def __init__(
        self, task: Task, augment: Augment, train: int = 8000, val: int = 2000, test: int = 2000, split_seed: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        """train, val, test: images in each split."""
        for key, value in (("train", train), ("val", val), ("test", test)):
            if value < 1:
                raise ValueError(f"dataset.{key}={value}: must be at least 1")
        super().__init__(task, augment, **options)
        self.sizes, self.split_seed = {"train": train, "val": val, "test": test}, split_seed


class Shapes(GeneratedImages):
    """`classes` is 10 (shapes) or 100 (shape x texture); images are [N, 3, 32, 32] uint8, classes balanced.

    shift: input adds noise and blur, feature draws other textures, output permutes the labels and merges them in
    pairs (5 or 50 classes). Splits come from seeds of their own, so their sizes do not change one another.
    """

    def __init__(
        self, task: Task, augment: Augment, classes: int = 10, noise: int = 24, shift: str = "none", **sizes: Any
    ) -> None:
        """noise: largest deviation of a pixel, of 255."""
        if classes not in (10, 100):
            raise ValueError(f"dataset.classes={classes}: 10 or 100")
        if shift not in SHIFTS:
            raise ValueError(f"dataset.shift={shift}: one of {', '.join(SHIFTS)}")
        if noise < 0:
            raise ValueError(f"dataset.noise={noise}: must be at least 0")
        super().__init__(task, augment, **sizes)
        self.classes, self.noise, self.shift = classes, noise, shift

    def spec(self) -> ImageSpec:
        names = list(SHAPES)
        if self.classes == 100:
            textures = NEW_TEXTURES if self.shift == "feature" else TEXTURES
            names = [f"{texture} {shape}" for shape in SHAPES for texture in textures]
        if self.shift == "output":
            pairs = self._permutation().view(-1, 2).tolist()
            names = [f"{names[a]} or {names[b]}" for a, b in pairs]
        return ImageSpec((3, SIZE, SIZE), tuple(names), mean=(0.5,) * 3, std=(0.25,) * 3)

    def _permutation(self) -> Tensor:
        return torch.randperm(self.classes, generator=_generator(self.split_seed, "output shift"))

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        count = self.sizes[name]
        g = _generator(self.split_seed, self.classes, name)
        labels = torch.arange(count) % self.classes
        labels = labels[torch.randperm(count, generator=g)]
        images = draw(labels, self.classes, NEW_TEXTURES if self.shift == "feature" else TEXTURES, g)
        noise = self.noise if self.shift != "input" else self.noise * 3
        images = _add_noise(images, noise, g, blur=self.shift == "input")
        if self.shift == "output":
            where = torch.empty(self.classes, dtype=torch.long)
            where[self._permutation()] = torch.arange(self.classes)
            labels = where[labels] // 2
        return images, labels


def draw(labels: Tensor, classes: int, textures: dict[str, Callable[..., Tensor]], g: torch.Generator) -> Tensor:
    """Pictures of `labels`, [N] -> [N, 3, 32, 32] uint8; everything but the class is drawn from `g`."""
    n = len(labels)

    def draws(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (n, *shape), generator=g, dtype=torch.int32)

    angle, radius = draws(-5, 6) % 64, draws(16, 27) * ONE  # up to 28 degrees
    centre_x, centre_y, phase = draws(-6, 7), draws(-6, 7), draws(0, 60)
    texture = labels % 10 if classes == 100 else draws(0, 10)
    shape = labels // 10 if classes == 100 else labels
    back = draws(0, 120, 3)
    light = back + draws(60, 136, 3)  # the figure is lighter than the ground in every channel, its dark tone less so
    dark = light - (light - back) * draws(30, 61, 1) // 100
    tilt = draws(-3, 4, 3, 2)  # background: a colour gradient, per half pixel, in 1/2

    axis = torch.arange(SIZE, dtype=torch.int32)
    half = 2 * axis - (SIZE - 1)
    images = torch.empty(n, 3, SIZE, SIZE, dtype=torch.uint8)
    x, y = axis.view(1, 1, SIZE), axis.view(1, SIZE, 1)
    for s, (shape_name, inside) in enumerate(SHAPES.items()):
        for t, pattern in enumerate(textures.values()):
            rows = ((shape == s) & (texture == t)).nonzero().flatten()
            if not len(rows):
                continue
            dx = half.view(1, 1, SIZE) - centre_x[rows].view(-1, 1, 1)
            dy = half.view(1, SIZE, 1) - centre_y[rows].view(-1, 1, 1)
            cos, sin = _COS[angle[rows]].view(-1, 1, 1), _SIN[angle[rows]].view(-1, 1, 1)
            u, v, r = dx * cos + dy * sin, dy * cos - dx * sin, radius[rows].view(-1, 1, 1)
            mask = inside(u, v, r)
            if shape_name in _SHAPE_LIMIT:
                mask &= torch.maximum(u.abs(), v.abs()) <= r
            p = phase[rows].view(-1, 1, 1)
            tone = pattern(x.expand(len(rows), SIZE, SIZE), y.expand(len(rows), SIZE, SIZE), p)
            for c in range(3):
                gradient = tilt[rows, c, 0].view(-1, 1, 1) * half.view(1, 1, SIZE)
                ground = (
                    back[rows, c].view(-1, 1, 1)
                    + (gradient + tilt[rows, c, 1].view(-1, 1, 1) * half.view(1, SIZE, 1)) // 2
                )
                figure = torch.where(tone, light[rows, c].view(-1, 1, 1), dark[rows, c].view(-1, 1, 1))
                images[rows, c] = torch.where(mask, figure, ground).clamp_(0, 255).to(torch.uint8)
    return images


def _add_noise(images: Tensor, amplitude: int, g: torch.Generator, blur: bool) -> Tensor:
    """Blur by a 3x3 box, then add one of 512 noise pictures to each image."""
    pool = torch.randint(-amplitude, amplitude + 1, (512, 3, SIZE, SIZE), generator=g, dtype=torch.int16)
    which = torch.randint(0, len(pool), (len(images),), generator=g)
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].to(torch.int16)
        if blur:
            for dim in (-1, -2):
                part = (part + part.roll(1, dim) + part.roll(-1, dim)) // 3
        images[start : start + 1000] = (part + pool[which[start : start + 1000]]).clamp_(0, 255).to(torch.uint8)
    return images


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("shapes", *parts))


def _square(x: Tensor) -> Tensor:
    return (x // 4) * (x // 4)  # 1/4096: the sum of two squares stays inside int32


def _between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (x >= low) & (x <= high)
