"""Rows of batches: taken, joined and counted alike for every leaf, whatever the data is made of.

Dimension 0 of every leaf is the sample. What has a varying number of parts per sample is `Ragged`, whose values lie one
after the other; taking rows of it takes the values that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hydratune.core.ragged import Ragged
from hydratune.core.types import Batch, Features


def is_ragged(node: Any) -> bool:
    return isinstance(node, Ragged)


def count(tree: Features) -> int:
    """Samples in a pytree of features or targets."""
    leaves = tree_flatten(tree, is_leaf=is_ragged)[0]
    return len(leaves[0].lengths if is_ragged(leaves[0]) else leaves[0])


def mapped(change: Callable[[Any], Any], tree: Features) -> Features:
    """`change` of every leaf; a `Ragged` is one leaf."""
    leaves, shape = tree_flatten(tree, is_leaf=is_ragged)
    return tree_unflatten([change(leaf) for leaf in leaves], shape)


def rows(tree: Features, first: int, last: int) -> Features:
    """Samples [first, last) of every leaf."""
    return mapped(lambda leaf: leaf.rows(first, last) if is_ragged(leaf) else leaf[first:last], tree)


def selected(tree: Features, index: Tensor) -> Features:
    """The samples `index` [B] of every leaf, in that order."""
    return mapped(lambda leaf: leaf.selected(index) if is_ragged(leaf) else leaf[index], tree)


def joined(parts: Sequence[Features]) -> Features:
    """Samples of several pytrees of one structure, one after the other."""
    leaves, shapes = zip(*(tree_flatten(part, is_leaf=is_ragged) for part in parts), strict=True)
    together: list[Any] = []
    for same in zip(*leaves, strict=True):
        if is_ragged(same[0]):
            together.append(Ragged(torch.cat([r.values for r in same]), torch.cat([r.lengths for r in same])))
        else:
            together.append(torch.cat(same) if isinstance(same[0], Tensor) else same[0])
    return tree_unflatten(together, shapes[0])


def to_device(tree: Features, device: torch.device) -> Features:
    def moved(leaf: Any) -> Any:
        return Ragged(leaf.values.to(device), leaf.lengths.to(device)) if is_ragged(leaf) else leaf.to(device)

    return mapped(moved, tree)


def batch_rows(batch: Batch, first: int, last: int) -> Batch:
    """Samples [first, last) of a batch."""
    return Batch(*(rows(part, first, last) for part in (batch.inputs, batch.targets, batch.ids)))


def check_batch(batch: Batch) -> None:
    """Raises ValueError where a leaf of the batch does not have the samples in dimension 0.

    Slicing such a leaf would pair samples with the targets of others, without an error.
    """
    wanted = len(batch.ids)
    for name, tree in (("inputs", batch.inputs), ("targets", batch.targets)):
        for leaf in tree_flatten(tree, is_leaf=is_ragged)[0]:
            if is_ragged(leaf):
                found, total = len(leaf.lengths), int(leaf.lengths.sum())
                if total != len(leaf.values):
                    raise ValueError(f"batch.{name}: a Ragged of {len(leaf.values)} values has lengths of {total}")
            elif isinstance(leaf, Tensor) and leaf.ndim:
                found = len(leaf)
            else:
                raise ValueError(
                    f"batch.{name}: a {type(leaf).__name__} without samples; each leaf is a tensor [B, ...]"
                )
            if found != wanted:
                raise ValueError(
                    f"batch.{name}: a leaf has {found} rows for {wanted} samples. Dimension 0 of every leaf is the "
                    "sample; what has a varying number of parts per sample is a Ragged(values, lengths)"
                )
