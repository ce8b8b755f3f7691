"""A network from a group on, as a trial runs it: plainly, or with activations that are computed again in backward.

Chen et al. 2016, arXiv 1604.06174, by torch.utils.checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from hydratune.core.types import Features, LayerGroup
from hydratune.models.network import Network


@dataclass(frozen=True)
class Tail:
    """again: places of the groups of which nothing but their inputs is kept for backward. The bits are the same."""

    network: Network
    again: frozenset[int]

    def forward(self, features: Features, first: int) -> Features:
        """Run groups[first:] on the output of groups[:first]. Raises ValueError for a group that cannot run twice."""
        if not self.again:
            return self.network.forward(features, first)
        for place, group in enumerate(self.network.groups[first:], first):
            if place in self.again:
                leaves, form = tree_flatten(features)
                # Where backward runs it again, it draws the same noise, and computes in the same precision.
                features = checkpoint(partial(_run, group, form), *leaves, use_reentrant=False, preserve_rng_state=True)
            else:
                features = group.module(features)
        return features


def _run(group: LayerGroup, form: TreeSpec, *leaves: Any) -> Features:
    """The group on a copy of its inputs, as its layers may work in place."""
    buffers = list(group.module.named_buffers())
    before = [buffer._version for _, buffer in buffers]
    copies = [leaf.clone() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in leaves]
    outputs = group.module(tree_unflatten(copies, form))
    for (name, buffer), version in zip(buffers, before, strict=True):
        if buffer._version != version:
            raise ValueError(
                f"engine.recompute=true: layer group {group.name} changes its {name} whenever it runs, and would be "
                "another one the second time; engine.recompute=false trains it"
            )
    return outputs
