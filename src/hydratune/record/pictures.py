"""Pictures for TensorBoard: batches, mistakes, confusion matrices, scatter plots, masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def visible(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation: [B, C, H, W] float -> [B, 3, H, W] uint8."""
    channels = images.shape[1]
    m, s = (images.new_tensor((list(v) * 3)[:channels] if len(v) == 1 else v).view(1, -1, 1, 1) for v in (mean, std))
    pixels = (images * s + m).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1) if channels == 1 else pixels


def grid(images: Tensor, columns: int = 8, smallest: int = 64) -> Tensor:
    """[B, 3, H, W] uint8 -> one picture [3, ., .], each image at least `smallest` pixels wide."""
    factor = max(math.ceil(smallest / images.shape[3]), 1)
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    images = F.pad(images, (2, 2, 2, 2))
    rows = math.ceil(len(images) / columns)
    images = torch.cat([images, images.new_zeros(rows * columns - len(images), *images.shape[1:])])
    _, c, h, w = images.shape
    return images.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w).contiguous()


def mistakes(images: Tensor, captions: Sequence[str], columns: int = 4, side: int = 128) -> Tensor:
    """Images [B, 3, H, W] uint8 with what they are and what they were taken for, as one picture [3, ., .]."""
    from PIL import Image, ImageDraw

    width, height = side + 24, side + 30
    rows = max(math.ceil(len(captions) / columns), 1)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=False)):
        left, top = i % columns * width, i // columns * height
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left + 12, top + 2))
        pen.multiline_text((left + 12, top + side + 3), caption, fill="black", font_size=10, spacing=1)
    return sheet_as_tensor(sheet)


def confusion(matrix: Tensor, names: Sequence[str]) -> Tensor:
    """[K, K] counts (true, predicted), drawn as shares of each true class: white 0, dark blue 1."""
    from PIL import Image, ImageDraw

    k = len(names)
    shares = (matrix.double() / matrix.sum(1, keepdim=True).clamp_min(1)).cpu()
    cell = 34 if k <= 12 else max(600 // k, 4)
    margin = 8 * min(max(map(len, names)), 24) + 8 if k <= 40 else 20
    sheet = Image.new("RGB", (margin + k * cell + 4, margin + k * cell + 4), "white")
    pen = ImageDraw.Draw(sheet)
    white, blue = torch.tensor([255.0, 255.0, 255.0]), torch.tensor([8.0, 48.0, 107.0])
    colours = torch.lerp(white, blue, shares.float().unsqueeze(2)).round().to(torch.uint8)
    heat = Image.fromarray(colours.repeat_interleave(cell, 0).repeat_interleave(cell, 1).numpy())
    sheet.paste(heat, (margin, margin))
    pen.text((4, 4), "true \\ predicted", fill="black", font_size=11)
    if k <= 40:
        across = Image.new("RGB", (margin, k * cell), "white")
        label = ImageDraw.Draw(across)
        for i, name in enumerate(names):
            pen.text((4, margin + i * cell + cell // 2 - 6), name[:24], fill="black", font_size=11)
            label.text((4, i * cell + cell // 2 - 6), name[:24], fill="black", font_size=11)
        sheet.paste(across.rotate(90, expand=True), (margin, 0))  # reads upwards, first class leftmost
    if k <= 12:
        for i in range(k):
            for j in range(k):
                if shares[i, j] >= 0.005:
                    colour = "white" if shares[i, j] > 0.5 else "black"
                    where = (margin + j * cell + cell // 2, margin + i * cell + cell // 2)
                    pen.text(where, f"{shares[i, j]:.2f}", fill=colour, font_size=11, anchor="mm")
    return sheet_as_tensor(sheet)


def scatter(true: Tensor, predicted: Tensor, name: str) -> Tensor:
    """True numbers across, predicted ones upwards, with the line on which both are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    low, high = (float(end(torch.stack([true, predicted]))) for end in (torch.min, torch.max))
    axes.plot([low, high], [low, high], color="0.6", linewidth=1)
    axes.scatter(true.numpy(), predicted.numpy(), s=9, alpha=0.5, color="#08306b", edgecolors="none")
    axes.set_xlabel(f"{name.replace('$', ' ')}: true")
    axes.set_ylabel("predicted")
    axes.set_aspect("equal", adjustable="datalim")
    return _drawn(figure)


def side_by_side(images: Tensor, masks: Sequence[Tensor], titles: Sequence[str], side: int = 192) -> Tensor:
    """Images [B, 3, H, W] uint8 in a column, and beside each its masks [B, H, W], a colour for every class."""
    from PIL import Image, ImageDraw

    count, header = len(images), 18
    sheet = Image.new("RGB", ((side + 4) * (1 + len(masks)), header + (side + 4) * count), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * (side + 4) + 4, 3), title, fill="black", font_size=11)
    for row in range(count):
        top = header + row * (side + 4)
        pictures = [images[row].permute(1, 2, 0).cpu(), *(painted(mask[row].cpu()) for mask in masks)]
        for column, picture in enumerate(pictures):
            kind = Image.Resampling.BILINEAR if column == 0 else Image.Resampling.NEAREST
            sheet.paste(Image.fromarray(picture.numpy()).resize((side, side), kind), (column * (side + 4), top))
    return sheet_as_tensor(sheet)


def painted(mask: Tensor) -> Tensor:
    """[H, W] class numbers -> [H, W, 3] uint8; 255, which is ignored, is white. Colours as of Pascal VOC."""
    numbers = torch.arange(256)
    palette = torch.zeros(256, 3, dtype=torch.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).to(torch.uint8)
    palette[255] = 255
    return palette[mask.long()]


def _drawn(figure: Any) -> Tensor:
    """What matplotlib has drawn."""
    import io

    from PIL import Image

    content = io.BytesIO()
    figure.savefig(content, format="png")
    return sheet_as_tensor(Image.open(content).convert("RGB"))


def sheet_as_tensor(sheet: Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()
