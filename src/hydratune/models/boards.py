"""Networks for boards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.types import Backbone


class BoardBlock(nn.Module):
    """Two 3x3 convolutions and the input added (He et al. 2016). GroupNorm: play and training see the same numbers."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(norm_groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(norm_groups, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same"""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x + y)


def board_resnet(
    blocks: int = 5, width: int = 32, norm_groups: int = 4, *, input_shape: tuple[int, int, int]
) -> Backbone:
    """A stem and residual blocks at the board's own size, each a layer group; [B, width, H, W] comes out, not pooled,
    as a move has a place. As AlphaZero's (Silver et al. 2018), with GroupNorm in place of BatchNorm.
    """
    if blocks < 1:
        raise ValueError(f"model.blocks={blocks}: at least 1")
    if norm_groups < 1 or width % norm_groups:
        raise ValueError(f"model.norm_groups={norm_groups}: must divide model.width={width}")
    source = nn.Module()
    source.stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    source.stem_norm = nn.GroupNorm(norm_groups, width)
    groups: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(source.stem, source.stem_norm, nn.ReLU()))]
    for i in range(1, blocks + 1):
        block = BoardBlock(width, norm_groups)
        source.add_module(f"block{i}", block)
        groups.append((f"block{i}", block))
    return Backbone(source=source, groups=groups, in_channels=None)
