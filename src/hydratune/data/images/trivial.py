"""TrivialAugmentWide (arXiv 2103.10158): one random operation at a random strength, for a whole batch at once.

Operations, ranges and arithmetic are those of torchvision.transforms.v2.TrivialAugmentWide on uint8 tensors. The
operations on pixel values therefore work on 0..255 in whole numbers, which also makes a sample's result independent of
the order in which a device sums; the geometric ones move pixels and leave their values alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hydratune.data.images.colour import grey
from hydratune.data.images.geometry import MOVES, around, move, move_of

BINS = 31  # of the magnitude


def trivial_augment(images: Tensor, draws: Tensor) -> Tensor:
    """Float32 images [B, C, H, W] in 0..1, C 1 or 3, and uniform draws [B, 3] in [0, 1) -> images of the same shape.

    draws: which operation, which magnitude bin, which sign (only the signed operations look at it).
    """
    operation, strength = _drawn(draws)
    # One sort and one count: a mask per operation would make the host wait for the device each time.
    counts = operation.bincount(minlength=len(OPERATIONS)).tolist()
    chosen = dict(zip(OPERATIONS, operation.argsort(stable=True).split(counts), strict=True))

    out = images.clone()
    rows = torch.cat([chosen[name] for name in MOVES])
    if len(rows):
        out[rows] = move(images[rows], operation[rows], strength[rows], OPERATIONS)
    for name, change in PIXELWISE.items():
        rows = chosen[name]
        if len(rows):
            values = (images[rows] * 255).round().clamp(0, 255)
            out[rows] = change(values, strength[rows].view(-1, 1, 1, 1)).to(out.dtype) / 255
    return out


def _drawn(draws: Tensor) -> tuple[Tensor, Tensor]:
    """(which operation [B], its strength in -1..1 [B])"""
    operation = (draws[:, 0] * len(OPERATIONS)).long()
    strength = (draws[:, 1] * BINS).floor() / (BINS - 1)
    return operation, torch.where(draws[:, 2] < 0.5, -strength, strength)


def trivial_boxes(boxes: Tensor, draws: Tensor, size: tuple[int, int]) -> Tensor:
    """[S, 4] around what the moves make of boxes, draws [S, 3]; size: (H, W) of the image."""
    operation, strength = _drawn(draws)
    shear_x, shear_y, shift_x, shift_y, turn = move_of(operation, strength, OPERATIONS)
    height, width = size
    # `move` says where each place comes from
    matrix = (turn.cos(), shear_x - turn.sin(), shear_y + turn.sin(), turn.cos())
    shift = torch.stack([shear_x * height / 2 - shift_x.trunc(), shear_y * width / 2 - shift_y.trunc()], 1)
    return around(boxes, matrix, shift, size)


def trivial_moves(masks: Tensor, draws: Tensor, outside: int) -> Tensor:
    """What moves an image moves its mask [B, 1, H, W] (float), with `outside` where the image shows nothing."""
    operation, strength = _drawn(draws)
    moves = torch.tensor([OPERATIONS.index(name) for name in MOVES], device=masks.device)
    rows = torch.isin(operation, moves).nonzero().flatten()
    if not len(rows):
        return masks
    moved = move(masks[rows] + 1, operation[rows], strength[rows], OPERATIONS)
    return masks.index_copy(0, rows, torch.where(moved == 0, float(outside), moved - 1))


def _blend(values: Tensor, other: Tensor | float, strength: Tensor) -> Tensor:
    """Nearly `other` at strength -1, unchanged at 0, as far away on the other side at 1."""
    return (values + (values - other) * (0.99 * strength)).clamp(0, 255).floor()


def _brightness(values: Tensor, strength: Tensor) -> Tensor:
    return _blend(values, 0.0, strength)


def _color(values: Tensor, strength: Tensor) -> Tensor:
    return _blend(values, grey(values).floor(), strength)


def _contrast(values: Tensor, strength: Tensor) -> Tensor:
    return _blend(values, grey(values).floor().mean((2, 3), keepdim=True), strength)


def _sharpness(values: Tensor, strength: Tensor) -> Tensor:
    """Against a 3 x 3 blur whose centre weighs five times a neighbour; the outermost pixels stay as they are."""
    blurred = ((9 * F.avg_pool2d(values, 3, stride=1, padding=1) + 4 * values) / 13).round()
    other = values.clone()
    other[:, :, 1:-1, 1:-1] = blurred[:, :, 1:-1, 1:-1]
    return _blend(values, other, strength)


def _posterize(values: Tensor, strength: Tensor) -> Tensor:
    """Keep 8 bits down to 2."""
    step = torch.exp2((6 * strength.abs()).round())
    return (values / step).floor() * step


def _solarize(values: Tensor, strength: Tensor) -> Tensor:
    """Invert what reaches the threshold, 255 down to 0."""
    return torch.where(values >= 255 - 255 * strength.abs(), 255 - values, values)


def _autocontrast(values: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import autocontrast

    return autocontrast(values.to(torch.uint8))


def _equalize(values: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import equalize

    return equalize(values.to(torch.uint8))


PIXELWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
OPERATIONS = ("Identity", *MOVES, *PIXELWISE)
