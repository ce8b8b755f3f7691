"""The article's network, and the multilayer perceptron of the MNIST tutorials."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hydratune.core.types import Backbone


def simple_cnn(width: int = 32) -> Backbone:
    """conv 3->32 (3x3, padding 1), ReLU; the head is linear 32*32*32 -> classes at 32 px.

    The last group returns [B, width * H * W].
    """
    source = nn.Module()
    source.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1)
    return Backbone(
        source=source,
        groups=[("conv1", nn.Sequential(source.conv1, nn.ReLU(), nn.Flatten()))],
        head_name="fc",
    )


def mlp(widths: Sequence[int] = (64, 128, 64), *, input_shape: tuple[int, int, int]) -> Backbone:
    """Linear, BatchNorm, ReLU for every width, on flattened pixels; one group per width."""
    channels, height, width = input_shape
    features = channels * height * width
    source = nn.Module()
    groups: list[tuple[str, nn.Module]] = []
    for i, outputs in enumerate(widths):
        layer = nn.Sequential(nn.Linear(features, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
        source.add_module(f"layer{i}", layer)
        groups.append((f"layer{i}", nn.Sequential(nn.Flatten(), layer) if i == 0 else layer))
        features = outputs
    return Backbone(source=source, groups=groups, head_name="head", in_channels=None)
