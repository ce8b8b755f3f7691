"""A trained network made ready to be used: its weights, what it is given, what it answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydratune.config.job import Job
from hydratune.config.origin import found, run_of
from hydratune.config.validate import OWN_SPLIT
from hydratune.core.spec_json import spec_from_json
from hydratune.core.task import Asked, Task
from hydratune.core.types import Backbone, Batch, Features, LoadReport, Spec
from hydratune.data.dataset import Dataset
from hydratune.data.inputs import Item
from hydratune.data.samples import inputs_of
from hydratune.data.stream import Batches, Placement
from hydratune.distributed.runtime import Numerics, Runtime
from hydratune.engine.evaluate import in_evaluation
from hydratune.engine.memory import in_parts
from hydratune.experiment.components import dataset_of, runtime_of
from hydratune.experiment.init_from import Origin, find_origin, weights_home
from hydratune.experiment.job_group import answers_of
from hydratune.experiment.other_data import like
from hydratune.experiment.prepare import first_network, init_rules, load_origin
from hydratune.models.network import Network
from hydratune.record.run_record import RunRecord


@dataclass(frozen=True, eq=False)
class Trained:
    """dataset: what the configuration names, perhaps another one than it was trained on. inputs: what samples become.

    record: of the run that trained it; of a foreign file there is none.
    """

    job: Job
    record: RunRecord
    origin: Origin
    loaded: LoadReport
    network: Network
    body: Backbone
    dataset: Dataset
    inputs: Any  # Inputs, a Dataset itself; None where the data says not how
    spec: Spec
    runtime: Runtime

    @property
    def task(self) -> Task:
        return self.dataset.task

    @property
    def home(self) -> Path:
        """Where the weights lie."""
        wanted = str(self.job.config.init_from)
        return run_of(wanted) or found(wanted)

    @property
    def step(self) -> int:
        """Of the training that they are of."""
        return self.record.best_step or 0

    @property
    def maker(self) -> Dataset:
        """What makes batches as the network was trained on them, of whatever samples."""
        maker: Dataset = self.dataset if self.inputs is None else self.inputs
        return maker

    def shower(self, dataset: Dataset) -> Dataset:
        """What sums up the samples of another data set: its own, unless its labels have become the network's."""
        same = list(dataset.task.answers(dataset.spec())) == list(self.task.answers(self.spec))
        return dataset if same else self.maker

    def own_data(self) -> bool:
        """Whether the files are those that it was trained on, so that its splits are those of the training."""
        made = self.record.provenance or {}
        return bool(made) and made.get("files") == self.dataset.files()

    @property
    def place(self) -> Placement:
        return Placement(self.runtime.torch_device, self.runtime.chosen.memory_format)

    @property
    def batches(self) -> Batches:
        return Batches(self.job.config.batch_size)

    def forward(self, features: Features) -> Any:
        """Outputs for a batch of inputs, in the numbers that it was trained in."""
        with self.runtime.autocast():
            return self.network.forward(features)

    def predict(self, dataset: Any, split: Any, asked: Asked) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """(numbers of samples, a row for each), a batch at a time."""
        own = Batches(min(self.batches.size, len(split)), self.job.config.seed)
        views = dataset.eval_views(split, self.body, own, self.place, self.job.config.views)
        with torch.no_grad(), in_evaluation([self.network]):
            for several in views:
                yield several[0].ids.tolist(), self._rows(several, asked)

    def _rows(self, views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        def forward(inputs: Features) -> Any:
            return in_parts(self.forward, inputs, len(views[0].ids))

        return self.task.predict(forward, views, asked)

    def answered(self, given: Sequence[Any]) -> list[dict[str, Any]]:
        """A row for each of the given inputs; one that cannot be read has an `error`."""
        if self.inputs is None:
            raise ValueError(f"inputs: {type(self.dataset).__name__} does not say how it reads them")
        items: list[Item] = self.inputs.items(given)
        result: list[dict[str, Any]] = []
        for first in range(0, len(items), self.inputs.chunk):
            result += self._chunk(items[first : first + self.inputs.chunk])
        return result

    def _chunk(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        split = self.inputs.split_of(items)
        rows: list[dict[str, Any]] = [dict(item.columns) for item in items]
        for numbers, answers in self.predict(self.inputs, split, self.asked(self.inputs)):
            for number, row in zip(numbers, answers, strict=True):
                rows[number] |= row
        for number, why in split.faults.items():
            rows[number] = {**items[number].columns, "error": why}
        return rows

    def asked(self, source: Any, labelled: bool = False) -> Asked:
        return Asked(self.spec, self.record.metrics or {}, labelled, source)


@contextmanager
def trained(job: Job) -> Iterator[Trained]:
    """What `init_from` leads to. Raises ValueError where the weights, the head among them, are not whole."""
    config = job.config
    assert config.init_from is not None
    run = run_of(config.init_from)
    record = RunRecord() if run is None else RunRecord.read(run)
    runtime = runtime_of(config, job.trust)
    runtime.start()
    if record.spec is not None:
        spec = spec_from_json(record.spec)
        dataset = like(spec, config.dataset, "dataset", job)
    else:  # of a foreign file, or of a version that did not record it
        dataset = dataset_of(config.dataset, "dataset", job.trust, weights_home(job))
        spec = dataset.spec()
    try:
        inputs: Any = inputs_of(dataset, spec)
        spec = inputs.spec()
    except ValueError:
        if record.spec is not None:
            raise
        inputs = None  # a user's own kind of data
    body, network = first_network(job, dataset if inputs is None else inputs, spec)
    origin = find_origin(job, body, spec, partial(_no_pretraining, config.init_from))
    try:
        loaded = load_origin(
            network.state_dict(), network.own_of_head(), origin, answers_of(dataset.task, spec), init_rules(config)
        )
        assert loaded is not None
        refuse_half(loaded, network, config.init_from)
        runtime = _computing(runtime, job, record)
        network.to(runtime.torch_device, runtime.chosen.memory_format)
        yield Trained(job, record, origin, loaded, network, body, dataset, inputs, spec, runtime)
    finally:
        if origin.held is not None:
            os.close(origin.held)


def refuse_half(loaded: LoadReport, network: Network, wanted: str) -> None:
    """Raises ValueError where some of the network would be random."""
    lost = [n for n in loaded.initialised if not n.endswith("num_batches_tracked")]
    if not lost:
        return
    why = loaded.initialised[lost[0]]
    hint = (
        "; init_head=true takes it all the same" if lost[0] in network.own_of_head() and "init_head" not in why else ""
    )
    raise ValueError(
        f"init_from={wanted}: {lost[0]} is not taken from there ({why}), and nothing is trained here{hint}"
    )


def _no_pretraining(wanted: str) -> Any:
    raise ValueError(f"init_from={wanted}: a run, a checkpoint or a file of tensors")


def _computing(runtime: Runtime, job: Job, record: RunRecord) -> Runtime:
    """In the numbers that the run was trained in, where it was on a device of this kind; else as typed, or plainly.

    What is measured takes as many threads as well, as they decide last bits; other predictions take what there are.
    """
    known = record.runtime or {}
    same = str(known.get("device", "")).partition(":")[0] == runtime.torch_device.type
    if "precision" in known and same and not any(o.startswith("runtime.") for o in job.overrides):
        numerics = Numerics.read(known)
        measured = job.config.stage == "evaluate" or str(job.config.inputs).startswith(OWN_SPLIT)
        return runtime.computing(numerics) if measured else runtime.choose(numerics.precision)
    return runtime.choose(runtime.candidates()[0])
