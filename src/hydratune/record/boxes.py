"""Pictures of boxes for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from hydratune.record.pictures import painted, sheet_as_tensor

Boxes = tuple[Tensor, Tensor, Tensor | None]  # [M, 4] left, top, right, bottom; [M] class numbers; [M] scores


def drawn(
    images: Tensor, boxes: Sequence[Boxes], names: Sequence[str], truth: Sequence[Boxes] = (),
    captions: Sequence[str] = (), columns: int = 2, side: int = 360,
) -> Tensor:  # fmt: skip
    """Images [B, 3, H, W] uint8 with their boxes, a colour for every class, as one picture [3, ., .].

    truth: is drawn in white below them. captions: a line above each image.
    """
    from PIL import Image, ImageDraw

    header = 16 if captions else 2
    scale = side / max(images.shape[2:])
    width, height = round(images.shape[3] * scale), round(images.shape[2] * scale)
    rows = max(math.ceil(len(images) / columns), 1)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + header + 2)), "white")
    for i, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((width, height))
        pen = ImageDraw.Draw(picture)
        for corners, _, _ in truth[i : i + 1]:
            for box in (corners * scale).tolist():
                pen.rectangle(box, outline="white", width=3)
        corners, labels, scores = boxes[i]
        colours = painted(labels.cpu() + 1).tolist()
        for k, (box, label) in enumerate(zip((corners * scale).tolist(), labels.tolist(), strict=True)):
            colour = tuple(colours[k])
            said = names[label] if scores is None else f"{names[label]} {float(scores[k]):.2f}"
            pen.rectangle(box, outline=colour, width=1 if truth else 2)
            pen.text((box[0] + 3, box[1] + 1), said, "white", font_size=10, stroke_width=2, stroke_fill=colour)
        left, top = i % columns * (width + 4), i // columns * (height + header + 2)
        sheet.paste(picture, (left, top + header))
        if captions:
            ImageDraw.Draw(sheet).text((left + 2, top + 1), captions[i], fill="black", font_size=11)
    return sheet_as_tensor(sheet)
