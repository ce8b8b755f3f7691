"""One pass over a split, each sample once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from hydratune.core.task import Task
from hydratune.core.types import Features, Metrics, Spec, Summary
from hydratune.data.stream import Stream
from hydratune.distributed import signals
from hydratune.distributed.runtime import Runtime
from hydratune.engine.memory import in_parts
from hydratune.engine.trunk import Trunk
from hydratune.models.network import Network


def evaluate(network: Network, task: Task, stream: Stream, spec: Spec, runtime: Runtime) -> Metrics:
    """Metrics of the network over every sample once."""
    return evaluate_tails([network], [0], task, Trunk(network, [0], runtime, stream), spec, runtime)[0]


@torch.no_grad()
def evaluate_tails(
    networks: Sequence[Network], cuts: Sequence[int], task: Task, trunk: Trunk, spec: Spec, runtime: Runtime
) -> list[Metrics]:
    """The same for networks that are one below their cuts; every layer's train or eval mode is left as it was.

    Raises Stopped where a signal is waiting: an evaluation may take long, and can be made again.
    """
    metrics = [task.metrics(spec, runtime.torch_device) for _ in networks]
    with in_evaluation(networks):
        for batch, features in trunk.eval_batches():
            if (number := runtime.agreed(signals.asked())) is not None:
                raise signals.Stopped(number)
            for network, cut, seen in zip(networks, cuts, metrics, strict=True):
                outputs = in_parts(
                    partial(_outputs, runtime, network, cut), features[cut], 0 if runtime.shares else len(batch.ids)
                )
                seen.update(outputs, batch)
    if runtime.world > 1:
        for seen in metrics:
            seen.over_ranks(runtime)
    return metrics


@torch.no_grad()
def previews(network: Network, task: Task, stream: Stream, runtime: Runtime) -> Mapping[str, Summary]:
    """What the task has somebody look at beside the metrics."""
    with in_evaluation([network]):
        return task.previews(partial(_outputs, runtime, network, 0), stream)


@contextmanager
def in_evaluation(networks: Sequence[Network]) -> Iterator[None]:
    """All layers in eval, then each as it was: a frozen BatchNorm may stand in eval within a group that trains."""
    groups = [group for network in networks for group in network.groups]
    modes = [(layer, layer.training) for group in groups for layer in group.module.modules()]
    for group in groups:
        group.module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _outputs(runtime: Runtime, network: Network, cut: int, features: Features) -> Features:
    with runtime.autocast():
        return network.forward(features, cut)
