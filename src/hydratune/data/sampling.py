"""Which samples an epoch draws: each once, or as many of each class, with repetition where a class is rare."""

from __future__ import annotations

import torch
from torch import Tensor

from hydratune.core.task import Task

SAMPLINGS = ("shuffle", "class_balanced")


def check_sampling(sampling: str, task: Task) -> None:
    """Raises ValueError for what there is not, and for a task in which a sample has not one class."""
    if sampling not in SAMPLINGS:
        raise ValueError(f"dataset.sampling={sampling}: one of {', '.join(SAMPLINGS)}")
    if sampling == "class_balanced" and task.kind != "classes":
        raise ValueError(
            f"dataset.sampling={sampling}: needs one class for each sample, and this task asks for {task.kind}; "
            "dataset.sampling=shuffle draws each sample once"
        )


def class_balanced(labels: Tensor, g: torch.Generator) -> Tensor:
    """[N] sample numbers in random order, equally many of each class but for a remainder that is drawn; labels [N].

    Class-balanced sampling of arXiv 1910.09217 (q = 0), stratified: within an epoch no sample of a class comes once
    more before all of them have come, so that a sample's count is that of its class over the class's size, rounded
    down or up.
    """
    _, of, sizes = labels.unique(return_inverse=True, return_counts=True)
    count, classes = len(labels), len(sizes)
    quota = count // classes + (torch.randperm(classes, generator=g) < count % classes).long()
    shuffled = torch.randperm(count, generator=g)
    members = shuffled[of[shuffled].argsort(stable=True)]  # one class after the other
    owner = torch.arange(classes).repeat_interleave(quota)
    turn = torch.arange(count) - (quota.cumsum(0) - quota)[owner]  # counts within the class
    drawn = members[(sizes.cumsum(0) - sizes)[owner] + turn % sizes[owner]]
    return drawn[torch.randperm(count, generator=g)]


def drawing(labels: Tensor) -> str:
    """What `class_balanced` draws, in words."""
    sizes = labels.unique(return_counts=True)[1]
    of_each = len(labels) / len(sizes)
    rarest, commonest = of_each / int(sizes.min()), of_each / int(sizes.max())
    each = f"a sample of the rarest {rarest:,.1f} times, one of the commonest {commonest:,.1f} times"
    return f"an epoch draws {of_each:,.0f} of each class (class_balanced): {each}"
