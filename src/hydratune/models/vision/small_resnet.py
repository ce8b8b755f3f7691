"""ResNet for 32 px images: He et al. 2015 (arXiv 1512.03385), section 4.2, shortcut option A."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.types import Backbone
from hydratune.models.vision.levels import with_levels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is the identity, subsampled and padded with zero channels where it must."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.padding:
            half = self.padding // 2
            # Subsampling as pooling over one pixel: a strided slice's gradient would come in another memory layout.
            x = F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, half, self.padding - half))
        return F.relu(x + y, inplace=True)


def small_resnet(depth: int = 20, *, dense: bool = False) -> Backbone:
    """ResNet-`depth` with 6n+2 layers: 16, 32, 64 channels, n blocks each. The last group returns [B, 64];
    dense: Levels.

    Raises ValueError for a depth that is not 6n+2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"model.depth={depth}: must be 6n+2, such as 20, 32, 44, 56, 110")
    source = nn.Module()
    source.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    source.bn1 = nn.BatchNorm2d(16)
    groups: list[tuple[str, nn.Module]] = [("stem", nn.Sequential(source.conv1, source.bn1, nn.ReLU(inplace=True)))]
    channels = 16
    for i, width in enumerate((16, 32, 64), start=1):
        blocks = []
        for block in range((depth - 2) // 6):
            blocks.append(BasicBlock(channels, width, stride=2 if i > 1 and block == 0 else 1))
            channels = width
        layer = nn.Sequential(*blocks)
        source.add_module(f"layer{i}", layer)
        groups.append((f"layer{i}", layer))
    if dense:
        groups = with_levels(groups, ["layer1", "layer2", "layer3"])
    else:
        groups[-1] = ("layer3", nn.Sequential(groups[-1][1], nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    for module in source.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # He et al. 2015 (arXiv 1502.01852), as section 3.4 says
    return Backbone(source=source, groups=groups, head_name="fc")
