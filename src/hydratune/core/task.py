"""What the engine, the streams and the data sets ask of a task: the question that is put to the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hydratune.core.loss import Loss
from hydratune.core.types import Batch, Features, Metrics, Spec, Summary


class Task(ABC):
    """A subclass says what is lost, what is measured and what a head for it is.

    kind: what its head answers with, by which a head made for another question is known. monitor: the metric of
    validation that selects, larger is better. question: what a model with heads of its own is asked for. random:
    whether what is asked of a sample differs from epoch to epoch. dense: whether it wants the levels of a body.
    mixes: whether targets of two samples can be blended, as mixup and cutmix do.
    """

    kind: ClassVar[str]
    monitor: str
    question: str = ""
    random: bool = False
    dense: bool = False
    mixes: bool = False

    @abstractmethod
    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        """features: of one sample, as the body gives them. Raises ValueError for a body that it cannot use."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Loss: ...

    @abstractmethod
    def metrics(self, spec: Spec, device: torch.device) -> Metrics: ...

    def make_inputs(self, values: Tensor, lengths: Tensor, labels: Any, noise: Any, spec: Any) -> tuple[Any, Any, Any]:
        """Of sequences: (values as the network sees them, positions that the head is asked for, targets)."""
        return values, values.new_empty(len(values), 0), labels

    def answers(self, spec: Spec) -> Sequence[str]:
        """What the outputs of its head stand for, in their order; empty where they have no names."""
        return spec.class_names

    def previews(self, forward: Callable[[Features], Any], stream: Any) -> Mapping[str, Summary]:
        """By tag, what somebody would look at in every evaluation. forward: inputs to outputs; stream: validation's."""
        return {}
