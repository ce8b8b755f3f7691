"""A network as one torch module, from plain tensors to the tensor that its task reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hydratune.core.task import Task
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


class Exported(nn.Module):
    """The same as other programs have it: tensors alone, by the names that the task gives them."""

    def __init__(self, whole: Whole, task: Task) -> None:
        super().__init__()
        self.whole, self._task = whole, task

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(self._task.exported(self.whole(*inputs)).values())
        return found[0] if len(found) == 1 else found
