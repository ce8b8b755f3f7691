"""What the engine, the streams and the data sets ask of a task: the question that is put to the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hydratune.core.loss import Loss
from hydratune.core.types import Batch, Features, Metrics, Spec, Summary


@dataclass(frozen=True)
class Monitor:
    """The metric that selects, larger is better; split: val, or the name of an evaluation set. latest: the newest
    evaluation is taken for the best, whatever the metric says.
    """

    metric: str
    split: str = "val"
    latest: bool = False

    @property
    def key(self) -> str:
        """Among all metrics of a run."""
        return f"{self.split}_{self.metric}"

    @property
    def label(self) -> str:
        return f"{self.split} {self.metric}"

    def of(self, val: Mapping[str, float], evals: Mapping[str, Mapping[str, float]]) -> float:
        return val[self.metric] if self.split == "val" else evals[self.split][self.metric]


@dataclass(frozen=True)
class Asked:
    """Beside outputs, what a prediction needs to know.

    seen: the metrics of the run that trained the network, such as the threshold that validation chose. labelled:
    whether the targets of the batches are true ones. source: the data set, for the words of a sample.
    """

    spec: Spec
    seen: Mapping[str, float] = field(default_factory=dict)
    labelled: bool = False
    source: Any = None


class Task(ABC):
    """A subclass says what is lost, what is measured and what a head for it is.

    kind: what its head answers with, by which a head made for another question is known. monitor: the metric of
    validation that selects, larger is better; monitors: those that could. question: what a model with heads of its own
    is asked for. random: whether what is asked of a sample differs from epoch to epoch. dense: whether it wants the
    levels of a body. mixes: whether targets of two samples can be blended, as mixup and cutmix do.
    """

    kind: ClassVar[str]
    monitor: str
    monitors: tuple[str, ...] = ()
    question: str = ""
    random: bool = False
    dense: bool = False
    mixes: bool = False

    @abstractmethod
    def build_head(self, features: Features, spec: Spec) -> nn.Module:
        """features: of one sample, as the body gives them. Raises ValueError for a body that it cannot use."""

    def first_level(self, strides: Sequence[int]) -> int:
        """Of a body's levels, the finest first, which one is the first that its head reads; for dense tasks.

        strides: pixels of the image to one of each level. Finer levels are not handed on, nor kept in caches.
        """
        return 0

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Loss: ...

    @abstractmethod
    def metrics(self, spec: Spec, device: torch.device) -> Metrics: ...

    def make_inputs(self, values: Tensor, lengths: Tensor, labels: Any, noise: Any, spec: Any) -> tuple[Any, Any, Any]:
        """Of sequences: (values as the network sees them, positions that the head is asked for, targets)."""
        return values, values.new_empty(len(values), 0), labels

    def predict(self, forward: Callable[[Features], Any], views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        """What is answered of each sample: column -> value; a mask is a uint8 tensor [H, W].

        views: the same samples once or several times, as augmentation shows them; their scores are averaged.
        """
        scores = [self.scores(forward(batch.inputs)) for batch in views]
        return self.rows(scores[0] if len(scores) == 1 else torch.stack(scores).mean(0), views[0], asked)

    def scores(self, outputs: Any) -> Tensor:
        """[B, ...] float64 of what the network gives, of which several views' mean is taken: probabilities mostly."""
        raise ValueError(f"dataset.task: {type(self).__name__} does not say what its predictions are")

    def rows(self, scores: Tensor, batch: Batch, asked: Asked) -> list[dict[str, Any]]:
        """Of each sample of a batch."""
        raise ValueError(f"dataset.task: {type(self).__name__} does not say what its predictions are")

    def exported(self, outputs: Any) -> dict[str, Tensor]:
        """What other programs get of what the head gives, by name."""
        return {"outputs": outputs}

    def answers(self, spec: Spec) -> Sequence[str]:
        """What the outputs of its head stand for, in their order; empty where they have no names."""
        return spec.class_names

    def previews(self, forward: Callable[[Features], Any], stream: Any) -> Mapping[str, Summary]:
        """By tag, what somebody would look at in every evaluation. forward: inputs to outputs; stream: validation's."""
        return {}
