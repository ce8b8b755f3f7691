"""ResNet-9, the short residual network of David Page's "How to train your ResNet" (DAWNBench, 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from hydratune.core.types import Backbone
from hydratune.models.vision.levels import with_levels


class Residual(nn.Module):
    """x + two 3x3 convolutions of the same width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class Scale(nn.Module):
    """Times a constant: the published network multiplies its logits by 1/8."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def resnet9(width: int = 64, *, dense: bool = False) -> Backbone:
    """Channels width, 2, 4, 8 times width; a residual in the first and third stage. Returns [B, 8 * width];
    dense: Levels.

    width=64 is the published network; the pooling before the head is global, as it must be for a head of any size.
    """
    source = nn.Module()
    layers = {
        "stem": _conv(3, width),
        "layer1": nn.Sequential(_conv(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width)),
        "layer2": nn.Sequential(_conv(2 * width, 4 * width), nn.MaxPool2d(2)),
        "layer3": nn.Sequential(_conv(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width)),
    }
    for name, layer in layers.items():
        source.add_module(name, layer)
    groups: list[tuple[str, nn.Module]] = list(layers.items())
    if dense:
        groups = with_levels(groups, ["layer1", "layer2", "layer3"])
    else:
        pooled = nn.Sequential(layers["layer3"], nn.AdaptiveMaxPool2d(1), nn.Flatten(), Scale(0.125))
        groups[-1] = ("layer3", pooled)
    return Backbone(source=source, groups=groups, head_name="fc")


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
