"""Labels of one data set as the answers of a network that was trained on another: by name, whatever their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hydratune.core.types import Spec


def relabelled(split: Any, theirs: Sequence[str], ours: Sequence[str], specs: tuple[Spec, Spec], where: str) -> Any:
    """The split with labels that the network answers.

    theirs, ours: the names that answers stand for, of the data and of the network; specs: likewise. Raises ValueError
    for a name that the network does not have, unless no sample has it.
    """
    data, network = specs
    if list(theirs) == list(ours) and data.targets == network.targets:
        return split
    labels = split.labels
    if labels is None:
        raise ValueError(f"{where}: its masks have other classes than the network ({_other(theirs, ours)})")
    if data.targets is not None and network.targets is not None:
        return split.with_labels(_in_units_of(labels, specs, where))
    if labels.is_floating_point():
        return split.with_labels(_columns(labels, theirs, ours, where))
    there = labels[labels >= 0]
    for number in there.unique().tolist():
        if theirs[number] not in ours:
            raise ValueError(f"{where}: has the class {theirs[number]}, which the network does not have: {_some(ours)}")
    numbers = torch.tensor([ours.index(name) if name in ours else -1 for name in theirs], dtype=labels.dtype)
    return split.with_labels(torch.where(labels >= 0, numbers[labels.clamp_min(0).long()], labels))


def _columns(labels: Tensor, theirs: Sequence[str], ours: Sequence[str], where: str) -> Tensor:
    """[N, K of theirs] -> [N, K of ours] of sets of labels."""
    for i, name in enumerate(theirs):
        if name not in ours and bool((labels[:, i] > 0).any()):
            raise ValueError(f"{where}: has the label {name}, which the network does not have: {_some(ours)}")
    result = labels.new_zeros(len(labels), len(ours))
    for i, name in enumerate(theirs):
        if name in ours:
            result[:, ours.index(name)] = labels[:, i]
    return result


def _in_units_of(labels: Tensor, specs: tuple[Spec, Spec], where: str) -> Tensor:
    """Standardised numbers, as the network was trained to give them."""
    data, network = (spec.targets for spec in specs)
    assert data is not None and network is not None
    if missing := [name for name in network.names if name not in data.names]:
        raise ValueError(f"{where}: has no column {missing[0]}, which the network predicts")
    at = [data.names.index(name) for name in network.names]
    values = labels.double() * torch.tensor(data.std) + torch.tensor(data.mean)
    return ((values[:, at] - torch.tensor(network.mean)) / torch.tensor(network.std)).float()


def _other(theirs: Sequence[str], ours: Sequence[str]) -> str:
    return next((name for name in theirs if name not in ours), "in another order")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
