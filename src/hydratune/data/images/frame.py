"""The rectangle of pixels that a network sees, and how a picture of any size becomes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hydratune.core.objects import clipped
from hydratune.core.types import ImageSpec

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 4096  # pixels of a side
FITS = ("crop", "letterbox")
GREY = 114  # of the margins of a letterbox, as most detectors have it


@dataclass(frozen=True, slots=True)
class Frame:
    """height, width: of what the network sees.

    fit: crop (the middle of the picture, as much as has the frame's shape) or letterbox (all of it, with grey margins).
    """

    height: int
    width: int
    fit: str = "crop"

    @staticmethod
    def of(size: Size, fit: str = "crop") -> Frame:
        """size: pixels of a square, or [height, width]. Raises ValueError."""
        if isinstance(size, Frame):
            return size
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
            raise ValueError(f"dataset.size={size}: pixels of a square, or [height, width]")
        if not all(1 <= side <= LARGEST for side in sides):
            bytes_ = 3 * sides[0] * sides[1]
            room = f"; one image of {size} would take {bytes_ / 1e9:,.1f} GB" if min(sides) > 0 else ""
            raise ValueError(f"dataset.size={size}: from 1 to {LARGEST} pixels{room}")
        if fit not in FITS:
            raise ValueError(f"dataset.fit={fit}: one of {', '.join(FITS)}")
        return Frame(sides[0], sides[1], fit)

    @staticmethod
    def of_spec(spec: ImageSpec) -> Frame:
        """Of the images that a network was trained on."""
        _, height, width = spec.input_shape
        return Frame(height, width, spec.fit)

    @property
    def bytes(self) -> int:
        """Of one image."""
        return 3 * self.height * self.width

    def taken(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of a picture of that size that is seen."""
        if self.fit == "letterbox":
            return 0, 0, width, height
        w, h = width, height
        if width * self.height > height * self.width:
            w = max(round(height * self.width / self.height), 1)
        else:
            h = max(round(width * self.height / self.width), 1)
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def placed(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the frame where that lies."""
        if self.fit == "crop":
            return 0, 0, self.width, self.height
        scale = min(self.width / width, self.height / height)
        w, h = max(round(width * scale), 1), max(round(height * scale), 1)
        left, top = (self.width - w) // 2, (self.height - h) // 2
        return left, top, left + w, top + h

    def cut(self, image: Image.Image, resample: Image.Resampling, fill: int | tuple[int, int, int]) -> Image.Image:
        """A picture as the network sees it; fill: what the margins are."""
        box, (left, top, right, bottom) = self.taken(*image.size), self.placed(*image.size)
        part = image.resize((right - left, bottom - top), resample, box=box)
        if part.size == (self.width, self.height):
            return part
        from PIL import Image

        canvas = Image.new(part.mode, (self.width, self.height), fill)
        canvas.paste(part, (left, top))
        return canvas

    def boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """[M, 4] (left, top, right, bottom) in a picture of that size -> in the frame; may reach beyond it."""
        start, scale, shift = self._map(boxes, width, height)
        return (boxes - start) * scale + shift

    def boxes_back(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """The inverse, clipped to the picture."""
        start, scale, shift = self._map(boxes, width, height)
        return clipped((boxes - shift) / scale + start, width, height)

    def _map(self, boxes: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
        (left, top, right, bottom), (x, y, end, low) = self.taken(width, height), self.placed(width, height)
        across, down = (end - x) / (right - left), (low - y) / (bottom - top)
        made = boxes.new_tensor
        return made([left, top, left, top]), made([across, down, across, down]), made([x, y, x, y])


Size = int | Sequence[int] | Frame
