"""How strongly the training data asks each layer group to change, before anything has."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hydratune.core.layer_groups import norm_layers
from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.core.types import Features, LayerGroup
from hydratune.data.stream import Stream
from hydratune.distributed.runtime import Runtime
from hydratune.engine.backward import Backward
from hydratune.engine.state import Progress
from hydratune.models.network import Network

BATCHES = 5  # as in the article's own code


def relative_gradient_norms(
    network: Network, task: Task, stream: Stream, runtime: Runtime, seed: int, parts: int
) -> Mapping[str, float]:
    """Per group below the head the norm of its gradient over that of its weights, the mean over the first batches of
    training (Auto-RGN, arXiv 2210.11466, section 4). The same on every rank.

    All layers are as they are where everything trains, BatchNorm included: with the statistics of other data its
    gradients would tell of these alone. Parameters of norms do not count. A copy is worked on. parts: micro-batches of
    a batch. Raises ValueError where a gradient is not finite.
    """
    modules = copy.deepcopy([g.module for g in network.groups])  # at once, so that what is tied stays so
    groups = [LayerGroup(g.name, m, g.names) for g, m in zip(network.groups, modules, strict=True)]
    own = Network(groups).to(runtime.torch_device, runtime.chosen.memory_format)
    for group in groups:
        group.module.requires_grad_(True).train()
    asked = {group.name: _weights(group) for group in groups[:-1]}
    asked = {name: weights for name, weights in asked.items() if weights}
    trained = list(own.parameters().values())
    backward = Backward(task, runtime, Progress(parts=parts))
    backward.enter([m for g in groups for m in g.module.modules()])
    sums = dict.fromkeys(asked, 0.0)
    for step, batch in enumerate(stream.batches(0, BATCHES)):

        def tail(part: int, features: Features, step: int = step) -> Features:
            runtime.seed_noise(derive_seed(seed, "gradients", step, runtime.rank, part))
            with runtime.autocast():
                return own.forward(features)

        backward.run(step, batch.inputs, batch, tail, trained)
        for name, weights in asked.items():
            slopes = [w.grad for w in weights if w.grad is not None]
            sums[name] += _norm(slopes) / max(_norm(weights), 1e-12)
        for parameter in trained:
            parameter.grad = None
    if odd := [name for name, total in sums.items() if not math.isfinite(total)]:
        raise ValueError(
            f"freeze.first=auto: the gradient of {odd[0]} is not finite; freeze.first names a group itself"
        )
    return {name: total / BATCHES for name, total in sums.items()}


def _weights(group: LayerGroup) -> list[Tensor]:
    """Its parameters but for those of norms, whose biases are near zero."""
    norms = {id(p) for layer, _ in norm_layers(group) for p in layer.parameters(recurse=False)}
    return [p for p in group.module.parameters() if id(p) not in norms]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm([t.detach() for t in tensors])) if tensors else 0.0
