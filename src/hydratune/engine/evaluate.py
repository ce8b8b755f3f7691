"""One pass over a split, each sample once."""

from __future__ import annotations

import torch

from hydratune.data.stream import Stream
from hydratune.engine.trunk import Trunk
from hydratune.models.network import Network
from hydratune.runtime import Runtime
from hydratune.types import DataSpec, Metrics, Task


@torch.no_grad()
def evaluate(network: Network, task: Task, samples: Stream | Trunk, spec: DataSpec, runtime: Runtime) -> Metrics:
    """Metrics of the network over every sample once; every layer's train or eval mode is left as it was."""
    trunk = samples if isinstance(samples, Trunk) else Trunk(network, 0, runtime, samples)
    # Layer by layer: a frozen BatchNorm may stand in eval within a group that trains.
    modes = [(layer, layer.training) for group in network.groups for layer in group.module.modules()]
    for group in network.groups:
        group.module.eval()
    metrics = task.metrics(spec, runtime.torch_device)
    for batch, features in trunk.once():
        with runtime.autocast():
            outputs = network.forward(features, trunk.cut)
        metrics.update(outputs, batch)
    for layer, mode in modes:
        layer.training = mode
    return metrics
