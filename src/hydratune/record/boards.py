"""Pictures of boards with what a network thinks of each move."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from hydratune.record.pictures import sheet_as_tensor

CELL, MARGIN, BARS = 26, 10, 44
OWN, OTHER, EMPTY = "#c0392b", "#f1c40f", "#dfe6ee"


def drawn(
    planes: Tensor, policy: Tensor, value: Tensor, moves: Sequence[str], captions: Sequence[str] = (), columns: int = 4
) -> Tensor:
    """Boards [B, C, H, W] as one picture [3, ., .]: red is to move, and beneath are the shares of its moves.

    policy: [B, A]; value: [B] from -1 to 1 for red. Where each move is a column of the board, its bar is below that;
    otherwise the likeliest moves are named.
    """
    from PIL import Image, ImageDraw

    count, _, height, width = planes.shape
    side_x, side_y = width * CELL + 2 * MARGIN, height * CELL + BARS + 34
    sheet = Image.new("RGB", (min(count, columns) * side_x, math.ceil(count / columns) * side_y), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(count):
        left, top = i % columns * side_x + MARGIN, i // columns * side_y + 20
        said = f"value {float(value[i]):+.2f}"
        pen.text((left, top - 16), f"{captions[i]}, {said}" if captions else said, fill="black", font_size=11)
        own, other = planes[i, 0].tolist(), planes[i, 1].tolist()
        for row in range(height):
            for column in range(width):
                x, y = left + column * CELL, top + row * CELL
                colour = OWN if own[row][column] else OTHER if other[row][column] else EMPTY
                pen.ellipse((x + 2, y + 2, x + CELL - 3, y + CELL - 3), fill=colour, outline="#7f8c8d")
        shares = policy[i].tolist()
        below = top + height * CELL
        if len(shares) == width:
            for column, share in enumerate(shares):
                x = left + column * CELL
                pen.rectangle(
                    (x + 4, below + BARS - 14 - share * (BARS - 16), x + CELL - 5, below + BARS - 14), fill="#2c3e50"
                )
                pen.text((x + 3, below + BARS - 12), f"{share:.0%}", fill="black", font_size=9)
        else:
            best = sorted(range(len(shares)), key=lambda a: -shares[a])[:4]
            said = "  ".join(f"{moves[a]} {shares[a]:.0%}" for a in best if shares[a] > 0)
            pen.text((left, below + 6), said, fill="black", font_size=10)
    return sheet_as_tensor(sheet)
