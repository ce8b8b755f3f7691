"""TrivialAugmentWide (arXiv 2103.10158): one random operation at a random strength, for a whole batch at once.

Operations, ranges and arithmetic are those of torchvision.transforms.v2.TrivialAugmentWide on uint8 tensors. The
operations on pixel values therefore work on 0..255 in whole numbers, which also makes a sample's result independent of
the order in which a device sums; the geometric ones move pixels and leave their values alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hydratune.data.images.augment import grey

BINS = 31  # of the magnitude


def trivial_augment(images: Tensor, draws: Tensor) -> Tensor:
    """Float32 images [B, C, H, W] in 0..1, C 1 or 3, and uniform draws [B, 3] in [0, 1) -> images of the same shape.

    draws: which operation, which magnitude bin, which sign (only the signed operations look at it).
    """
    operation = (draws[:, 0] * len(OPERATIONS)).long()
    strength = (draws[:, 1] * BINS).floor() / (BINS - 1)
    strength = torch.where(draws[:, 2] < 0.5, -strength, strength)
    # One sort and one count: a mask per operation would make the host wait for the device each time.
    counts = operation.bincount(minlength=len(OPERATIONS)).tolist()
    chosen = dict(zip(OPERATIONS, operation.argsort(stable=True).split(counts), strict=True))

    out = images.clone()
    rows = torch.cat([chosen[name] for name in GEOMETRIC])
    if len(rows):
        out[rows] = _move(images[rows], operation[rows], strength[rows])
    for name, change in PIXELWISE.items():
        rows = chosen[name]
        if len(rows):
            values = (images[rows] * 255).round().clamp(0, 255)
            out[rows] = change(values, strength[rows].view(-1, 1, 1, 1)).to(out.dtype) / 255
    return out


def _move(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Shear, translation or rotation of images [R, C, H, W]; operation, strength (-1..1) [R]. Nearest pixel, 0 outside.

    Each output pixel reads from an affine function of its place (torchvision's inverse matrix). A sample has one
    operation, the other four are 0, so that the five matrices add up. Shears keep the first row or column in place,
    rotation the centre.
    """
    height, width = images.shape[2:]
    shear_x, shear_y, shift_x, shift_y, turn = (
        strength.where(operation == OPERATIONS.index(name), 0).view(-1, 1, 1) * largest
        for name, largest in GEOMETRIC.items()
    )
    # Elementwise rather than F.affine_grid, whose matrix product loses whole pixels in TF32 or under autocast.
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).view(1, -1, 1)  # from the centre
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).view(1, 1, -1)
    source_x = turn.cos() * x + (shear_x - turn.sin()) * y + (shear_x * height / 2 - shift_x.trunc())
    source_y = (shear_y + turn.sin()) * x + turn.cos() * y + (shear_y * width / 2 - shift_y.trunc())
    grid = torch.stack((source_x / (width / 2), source_y / (height / 2)), dim=3)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


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


# The magnitude at strength 1: a tangent, a tangent, pixels, pixels, an angle.
GEOMETRIC = {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": math.radians(135)}
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
OPERATIONS = ("Identity", *GEOMETRIC, *PIXELWISE)
