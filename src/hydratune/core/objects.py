"""What lies in images: boxes, a varying number of them in each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hydratune.core.ragged import Ragged

COLUMNS = 6  # left, top, right, bottom; number of the class; 1 where it is a crowd, which is neither right nor wrong


class Objects(NamedTuple):
    """Targets of detection, a pytree as all targets are. Pixels count from the left and from the top."""

    boxes: Ragged  # [S, 6] float32 in pixels of what the network sees
    sizes: Tensor  # [B, 2] float32: width and height of the pictures that these were

    def where(self, kept: Tensor) -> Objects:
        """Without the boxes for which `kept` [S] is false."""
        owners = owner_of(self.boxes)
        lengths = torch.zeros_like(self.boxes.lengths).index_add_(0, owners, kept.to(self.boxes.lengths.dtype))
        return Objects(Ragged(self.boxes.values[kept], lengths), self.sizes)


def clipped(boxes: Tensor, width: float, height: float) -> Tensor:
    """[..., 4] left, top, right, bottom: what of them lies within so many pixels."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def owner_of(ragged: Ragged) -> Tensor:
    """[S] the sample that each value belongs to."""
    numbers = torch.arange(len(ragged.lengths), device=ragged.lengths.device)
    return numbers.repeat_interleave(ragged.lengths)
