"""Geometry: one map of places per sample, the same for an image and for what lies on it.

Images are read between pixels (bilinear), masks at the nearest one. All of it works on a batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# TrivialAugmentWide's moves, and their magnitude at strength 1: a tangent, a tangent, pixels, pixels, an angle
MOVES = {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": math.radians(135)}


def cropped(padded: Tensor, rows: Tensor | None, draws: Tensor, padding: int) -> Tensor:
    """A window of each of padded [N, C, H+2p, W+2p], of the rows [B] or of all; draws [B, 2] -> [B, C, H, W]."""
    height, width = padded.shape[2] - 2 * padding, padded.shape[3] - 2 * padding
    if rows is None:
        rows = torch.arange(len(padded), device=padded.device)
    # Every crop is a strided window of the padded tensor: one gather, no loop over samples.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    y, x = (draws * (2 * padding + 1)).long().unbind(1)
    return windows[rows, :, y, x]


def mirrored(images: Tensor, draws: Tensor, side: int = 3) -> Tensor:
    """Half of them, left to right (side 3) or top to bottom (2); draws [B]. `images` must be a copy of this batch."""
    flipped = draws < 0.5
    if images.is_cpu:  # half the copying; on a GPU it would make the host wait for the count
        ids = flipped.nonzero().flatten()
        return images.index_copy_(0, ids, images[ids].flip(side))
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(side), images)


def mirrored_boxes(boxes: Tensor, draws: Tensor, extent: float, side: int = 3) -> Tensor:
    """The same of boxes [S, 4] in images of `extent` pixels along that side; draws [S]."""
    first = 3 - side  # left and right are columns 0 and 2, top and bottom 1 and 3
    moved = boxes.clone()
    moved[:, first], moved[:, first + 2] = extent - boxes[:, first + 2], extent - boxes[:, first]
    return torch.where((draws < 0.5).unsqueeze(1), moved, boxes)


def window(draws: Tensor, share: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(width, height, shift of the centre along x and y) of a part, in half sides of the image; draws [B, 4]."""
    area, ratio, y, x = draws.unbind(1)
    area = share[0] + (share[1] - share[0]) * area
    ratio = torch.exp((2 * ratio - 1) * 0.2877)  # log 4/3
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)  # of the image's sides
    return w, h, (2 * x - 1) * (1 - w), (2 * y - 1) * (1 - h)


def resized_boxes(boxes: Tensor, draws: Tensor, share: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """Boxes [S, 4] in that part, enlarged as it is; draws [S, 4]; size: (H, W) of the image."""
    w, h, x, y = (t.unsqueeze(1) for t in window(draws, share))
    half = boxes.new_tensor([size[1] / 2, size[0] / 2] * 2)
    shift, scale = torch.cat([x, y, x, y], 1), torch.cat([w, h, w, h], 1)
    return ((boxes / half - 1 - shift) / scale + 1) * half


def resized_crop(images: Tensor, draws: Tensor, share: tuple[float, ...], mode: str = "bilinear") -> Tensor:
    """A part of each image [B, C, H, W], as large as the whole. mode: nearest for masks."""
    w, h, x, y = window(draws, share)
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w, h
    theta[:, 0, 2], theta[:, 1, 2] = x, y
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode, padding_mode="reflection", align_corners=False)


def rotated(
    images: Tensor, angles: Tensor, part: tuple[Tensor, Tensor, Tensor, Tensor] | None, mode: str = "bilinear"
) -> Tensor:
    """Images [B, C, H, W] turned about their middle by angles [B] (radians, counter-clockwise); 0 where they show
    nothing. part: of the turned image, as `window` gives it, enlarged to the whole. mode: nearest for masks.

    Both maps are one, so that pixels are interpolated once.
    """
    height, width = images.shape[2:]
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    # Elementwise as in `move`, in pixels from the middle
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).unsqueeze(0)
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).unsqueeze(0)
    if part is not None:
        w, h, right, down = (t.unsqueeze(1) for t in part)
        x, y = x * w + right * (width / 2), y * h + down * (height / 2)
    columns = torch.stack((cos * x / (width / 2), sin * x / (height / 2)), 2)
    rows = torch.stack((-sin * y / (width / 2), cos * y / (height / 2)), 2)
    grid = columns.unsqueeze(1) + rows.unsqueeze(2)  # one pass over [B, H, W, 2]
    return F.grid_sample(images, grid, mode, padding_mode="zeros", align_corners=False)


def rotated_boxes(boxes: Tensor, angles: Tensor, size: tuple[int, int]) -> Tensor:
    """[S, 4] around the corners of turned boxes [S, 4]; size: (H, W) of the image."""
    cos, sin = angles.cos(), angles.sin()
    return around(boxes, (cos, -sin, sin, cos), torch.zeros_like(boxes[:, :2]), size)


def around(boxes: Tensor, matrix: tuple[Tensor, ...], shift: Tensor, size: tuple[int, int]) -> Tensor:
    """[S, 4] around what becomes of boxes [S, 4] where each place x' is read from x = A x' + shift, from the middle.

    matrix: the rows of A one after the other, [S] each. Corners go the other way.
    """
    height, width = size
    a, b, c, d = matrix
    centre = boxes.new_tensor([width / 2, height / 2])
    left, top, right, bottom = boxes.unbind(1)
    corners = torch.stack([left, top, right, top, left, bottom, right, bottom], 1).view(-1, 4, 2)
    x, y = (corners - centre - shift.unsqueeze(1)).unbind(2)
    a, b, c, d, over = (t.unsqueeze(1) for t in (a, b, c, d, a * d - b * c))
    moved = torch.stack([(d * x - b * y) / over, (a * y - c * x) / over], 2) + centre
    return torch.cat([moved.amin(1), moved.amax(1)], 1)


def move_of(operation: Tensor, strength: Tensor, names: Sequence[str]) -> list[Tensor]:
    """[R] each: shear along x and y (tangents), shift along x and y (pixels), turn (angle); 0 where it is another."""
    return [strength.where(operation == names.index(name), 0) * largest for name, largest in MOVES.items()]


def move(images: Tensor, operation: Tensor, strength: Tensor, names: Sequence[str]) -> Tensor:
    """Shear, translation or rotation of images [R, C, H, W]; operation (of `names`), strength (-1..1) [R]. Nearest
    pixel, 0 outside.

    Each output pixel reads from an affine function of its place (torchvision's inverse matrix). A sample has one
    operation, the other four are 0, so that the five matrices add up. Shears keep the first row or column in place,
    rotation the centre.
    """
    height, width = images.shape[2:]
    shear_x, shear_y, shift_x, shift_y, turn = (t.view(-1, 1, 1) for t in move_of(operation, strength, names))
    # Elementwise rather than F.affine_grid, whose matrix product loses whole pixels in TF32 or under autocast.
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).view(1, -1, 1)  # from the centre
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).view(1, 1, -1)
    source_x = turn.cos() * x + (shear_x - turn.sin()) * y + (shear_x * height / 2 - shift_x.trunc())
    source_y = (shear_y + turn.sin()) * x + turn.cos() * y + (shear_y * width / 2 - shift_y.trunc())
    grid = torch.stack((source_x / (width / 2), source_y / (height / 2)), dim=3)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)
