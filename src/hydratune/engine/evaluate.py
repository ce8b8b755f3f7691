"""One pass over a split, each sample once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hydratune.data.stream import Stream
from hydratune.engine.trunk import Trunk
from hydratune.models.network import Network
from hydratune.runtime import Runtime
from hydratune.types import DataSpec, Metrics, Task


def evaluate(network: Network, task: Task, stream: Stream, spec: DataSpec, runtime: Runtime) -> Metrics:
    """Metrics of the network over every sample once."""
    return evaluate_tails([network], [0], task, Trunk(network, [0], runtime, stream), spec, runtime)[0]


@torch.no_grad()
def evaluate_tails(
    networks: Sequence[Network], cuts: Sequence[int], task: Task, trunk: Trunk, spec: DataSpec, runtime: Runtime
) -> list[Metrics]:
    """The same for networks that are one below their cuts; every layer's train or eval mode is left as it was."""
    # Layer by layer: a frozen BatchNorm may stand in eval within a group that trains.
    groups = [group for network in networks for group in network.groups]
    modes = [(layer, layer.training) for group in groups for layer in group.module.modules()]
    for group in groups:
        group.module.eval()
    metrics = [task.metrics(spec, runtime.torch_device) for _ in networks]
    for batch, features in trunk.once():
        for network, cut, seen in zip(networks, cuts, metrics, strict=True):
            with runtime.autocast():
                outputs = network.forward(features[cut], cut)
            seen.update(outputs, batch)
    for layer, mode in modes:
        layer.training = mode
    return metrics
