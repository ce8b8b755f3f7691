"""One pass over a split, each sample once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hydratune.models.network import Network
from hydratune.runtime import Runtime
from hydratune.types import DataSpec, Metrics, Task

if TYPE_CHECKING:
    from hydratune.data.stream import Stream


@torch.no_grad()
def evaluate(network: Network, task: Task, stream: Stream, spec: DataSpec, runtime: Runtime) -> Metrics:
    """Metrics of the network over `stream.once()`; its groups' train or eval modes are left as they were."""
    modes = [group.module.training for group in network.groups]
    for group in network.groups:
        group.module.eval()
    metrics = task.metrics(spec, runtime.torch_device)
    for batch in stream.once():
        with runtime.autocast():
            outputs = network.forward(batch.inputs)
        metrics.update(outputs, batch)
    for group, mode in zip(network.groups, modes, strict=True):
        group.module.train(mode)
    return metrics
