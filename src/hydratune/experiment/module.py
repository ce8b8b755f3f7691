"""A network as one torch module, from plain tensors to the tensor that its task reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hydratune.core.types import Features
from hydratune.data.dataset import Dataset
from hydratune.models.network import Network


class Whole(nn.Module):
    """All layer groups one after the other. maker: packs the tensors as the first group takes them."""

    def __init__(self, network: Network, maker: Dataset) -> None:
        super().__init__()
        self.groups = nn.ModuleDict({group.name.replace(".", "_"): group.module for group in network.groups})
        self._packed = maker.packed

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        features: Features = self._packed(*inputs, *named.values())
        for group in self.groups.values():
            features = group(features)
        return features
