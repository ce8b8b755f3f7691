"""Data that a network was not trained on, made and labelled as that was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydratune.config.instantiate import accepts
from hydratune.config.job import Job, Node
from hydratune.config.overrides import split_override
from hydratune.core.spec_json import settings_of
from hydratune.core.task import Task
from hydratune.core.types import Spec
from hydratune.data.dataset import Dataset
from hydratune.data.relabel import relabelled
from hydratune.experiment.components import dataset_of
from hydratune.experiment.init_from import weights_home


def like(spec: Spec, node: Node, where: str, job: Job) -> Dataset:
    """A data set whose samples are made as those of `spec` are, but for what is typed of it."""
    typed = {split_override(o)[0] for o in job.overrides}
    settings = {k: v for k, v in settings_of(spec).items() if f"{where}.{k}" not in typed and node.get(k) != v}
    own = {k: v for k, v in settings.items() if accepts(node, k, job.trust) and _may_be(k, node.get(k), v)}
    return dataset_of({**node, **own}, where, job.trust, weights_home(job))


def _may_be(key: str, written: Any, value: Any) -> bool:
    """Whether a key holds what a spec would have there: `classes` may be their number elsewhere."""
    return written is None or key != "classes" or isinstance(written, Sequence) == isinstance(value, Sequence)


def as_asked(dataset: Dataset, split: Any, task: Task, spec: Spec, where: str) -> Any:
    """The split with labels as a network of `spec` answers them. Raises ValueError for what it could not be asked."""
    theirs = dataset.spec()
    if dataset.task.kind != task.kind:
        raise ValueError(f"{where}: asks for {dataset.task.kind}, and the network answers {task.kind}")
    shapes = [getattr(s, "input_shape", ())[1:] for s in (theirs, spec)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{where}: its samples are of {shapes[0]}, and the network was trained on {shapes[1]}; {where}.size= may "
            "make them alike"
        )
    return relabelled(split, dataset.task.answers(theirs), task.answers(spec), (theirs, spec), where)
