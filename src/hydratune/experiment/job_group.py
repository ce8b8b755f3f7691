"""Jobs that run side by side: what they have in common, each ready to be trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydratune.config.fingerprint import fingerprint
from hydratune.config.job import Job
from hydratune.core.paths import cache_home
from hydratune.core.secrets import hidden_in
from hydratune.core.task import Task
from hydratune.core.types import Backbone, ImageSpec, Normalisation, Phase, Spec
from hydratune.data.dataset import Dataset
from hydratune.data.stream import Batches, Placement, Stream
from hydratune.distributed.runtime import Numerics, Precision, Runtime
from hydratune.engine.autotune import choose_precision, cost_meter
from hydratune.engine.gradients import relative_gradient_norms
from hydratune.engine.stretch import Streams
from hydratune.engine.trunk import Caches, plan_caches
from hydratune.experiment.components import dataset_of, runtime_of
from hydratune.experiment.init_from import weights_home
from hydratune.experiment.other_data import as_asked, like
from hydratune.experiment.prepare import PreparedJob, first_network, prepare_job
from hydratune.experiment.selection import monitor_of
from hydratune.freeze.cost import CostMeter
from hydratune.freeze.report import costs as cost_rows
from hydratune.models.foreign import alike, as_keys
from hydratune.models.load_weights import HeadAnswers
from hydratune.models.network import Network


@dataclass(frozen=True)
class EvalSet:
    """A further named evaluation set: its data, and the samples that are evaluated."""

    dataset: Dataset
    split: Any


@dataclass(frozen=True)
class JobGroup:
    """What jobs that run side by side have in common. warnings: what the data sets say of themselves."""

    first: Job
    runtime: Runtime
    dataset: Dataset
    spec: Spec
    body: Backbone
    train_split: Any
    val_split: Any
    evals: Mapping[str, EvalSet]
    warnings: Sequence[str]

    @property
    def steps_per_epoch(self) -> int:
        """Between two evaluations, where nothing else is asked for: an epoch, or a generation of games."""
        if self.first.config.selfplay:
            return self.first.config.steps or 1
        samples = len(self.train_split)
        return max(samples // min(self.first.config.batch_size, samples), 1)

    @property
    def answers(self) -> HeadAnswers:
        return answers_of(self.dataset.task, self.spec)

    def selection(self, job: Job) -> dict[str, Any]:
        """What selects, for its record; the evaluations of how many samples."""
        monitor = monitor_of(job.config.monitor, self.dataset.task)
        split = self.val_split if monitor.split == "val" else self.evals[monitor.split].split
        selects = None if monitor.split == "val" else monitor.split
        return {"monitor": monitor.metric, "selects": selects, "val_samples": len(split)}

    def at(self, numerics: Numerics) -> JobGroup:
        """With this precision, layout and number of threads from now on."""
        return replace(self, runtime=self.runtime.computing(numerics))

    def stream(self, split: Any, training: bool = False) -> Stream:
        runtime, config = self.runtime, self.first.config
        place = Placement(runtime.torch_device, runtime.chosen.memory_format, runtime.rank, runtime.world)
        batches = Batches(config.batch_size, config.seed, training)
        return self.dataset.stream(split, self.body, batches, place)

    def streams(self) -> Streams:
        evals = {name: self.stream(own.split) for name, own in self.evals.items()}  # made as the run's own
        return Streams(self.stream(self.train_split, training=True), self.stream(self.val_split), evals)

    def numerics(self, prepared: PreparedJob, network: Network) -> tuple[Numerics, str]:
        return prepared.numerics(self.dataset.files(), self.runtime, lambda: self._precision(network))

    def _precision(self, network: Network) -> tuple[Precision, str]:
        if self.runtime.shares:
            return self.runtime.candidates()[0], "not probed: no process has the whole network"
        network.to(self.runtime.torch_device)
        model = json.dumps(self.first.config.model, sort_keys=True)
        batch = next(self.stream(self.train_split).eval_batches())
        if self.runtime.rank:  # the first one tries and remembers: two would each find something else
            return Precision.parse(self.runtime.first_says("")), ""
        chosen, how = choose_precision(network, self.dataset.task, batch, self.runtime, model)
        self.runtime.first_says(str(chosen))
        return chosen, how


def answers_of(task: Task, spec: Spec) -> HeadAnswers:
    """As a checkpoint has them."""
    return HeadAnswers(task.kind, hidden_in(list(task.answers(spec))))


def dataset_of_job(job: Job) -> Dataset:
    return dataset_of(job.config.dataset, "dataset", job.trust, weights_home(job))


def check_data(job: Job) -> None:
    """Raises ValueError for data that cannot be used, test split included."""
    dataset = dataset_of_job(job)
    dataset.check(test=True)
    _eval_sets(job, dataset.spec(), dataset.task)


def in_common(jobs: Sequence[Job]) -> tuple[JobGroup, Network]:
    """What jobs have in common, and their network as no strategy has changed it yet."""
    first = jobs[0]
    runtime = runtime_of(first.config, first.trust)
    runtime.start()
    dataset = dataset_of_job(first)
    spec = dataset.spec()
    body, network = first_network(first, dataset, spec)
    warnings = [*dataset.check(any(job.reads_test for job in jobs)), *_normalised_otherwise(first, body, spec)]
    evals = _eval_sets(first, spec, dataset.task)
    train, val = dataset.split("train"), dataset.split("val")
    return JobGroup(first, runtime, dataset, spec, body, train, val, evals, warnings), network


def _normalised_otherwise(job: Job, body: Backbone, spec: Spec) -> list[str]:
    """A sentence where the images are not as those that the model's own weights were trained on."""
    theirs = body.normalisation
    if theirs is None or not isinstance(spec, ImageSpec) or job.config.init_from not in (None, "auto"):
        return []
    if alike(theirs, Normalisation(spec.mean, spec.std)):
        return []
    return [f"model.weights were trained on images of another normalisation; theirs is {as_keys(theirs)}"]


def _eval_sets(job: Job, spec: Spec, task: Task) -> dict[str, EvalSet]:
    """Raises ValueError for a set that the network could not be asked about."""
    found = {}
    for name, node in job.config.evals.items():
        where = f"evals.{name}"
        dataset = like(spec, node, where, job)
        split = as_asked(dataset, dataset.evaluated_split(), task, spec, where)
        dataset.check_evaluated(split, f"{where}:")
        found[name] = EvalSet(dataset, split)
    return found


def gather(jobs: Sequence[Job]) -> tuple[JobGroup, Network, list[PreparedJob], list[tuple[Job, Exception]]]:
    """(what they have in common, their network before anything is loaded, those that can run, those that cannot)"""
    group, network = in_common(jobs)
    ready: list[PreparedJob] = []
    failed: list[tuple[Job, Exception]] = []
    for job in jobs:
        try:
            monitor_of(job.config.monitor, group.dataset.task)
            own = network if len(jobs) == 1 else network.fork(0)
            prepared = prepare_job(job, own, group.steps_per_epoch, len(group.train_split))
            if prepared.undecided and group.runtime.shares:
                raise ValueError("freeze.first=auto: with runtime.strategy=fsdp no process has all gradients")
            if prepared.training.settings.recompute and group.runtime.shares:
                raise ValueError("engine.recompute=true: runtime.strategy=fsdp cannot yet; replicate can")
            ready.append(prepared)
        except Exception as error:
            failed.append((job, error))
    return group, network, ready, failed


def decided(group: JobGroup, ready: Sequence[PreparedJob]) -> tuple[list[PreparedJob], list[tuple[Job, Exception]]]:
    """(the jobs, with the choice of those whose strategies choose by gradients; those that cannot run)

    Their weights are those that they start from: one pass serves all whose networks are made alike.
    """
    found: dict[object, Mapping[str, float]] = {}
    chosen: list[PreparedJob] = []
    failed: list[tuple[Job, Exception]] = []
    for prepared in ready:
        key = frozenset(prepared.network.parameters()), prepared.training.settings.accumulate
        try:
            if prepared.undecided and key not in found:
                found[key] = _gradient_norms(group, prepared)
            chosen.append(prepared.decided(found[key]) if prepared.undecided else prepared)
        except Exception as error:
            failed.append((prepared.job, error))
    return chosen, failed


def _gradient_norms(group: JobGroup, prepared: PreparedJob) -> Mapping[str, float]:
    stream, parts = group.stream(group.train_split, training=True), prepared.training.settings.accumulate
    seed = prepared.job.config.seed
    return relative_gradient_norms(prepared.network, group.dataset.task, stream, group.runtime, seed, parts)


# ---- what their phases cost

Meters = dict[frozenset[str], CostMeter]  # by the parameters of a network


def meter(prepared: PreparedJob, group: JobGroup, train_stream: Stream, meters: Meters) -> CostMeter:
    """That of another job whose network is made alike, or a new one."""
    every = frozenset(prepared.network.parameters())
    if every not in meters:
        batch, config = next(train_stream.batches(0, 1)), prepared.training.optimizer
        meters[every] = cost_meter(prepared.network, group.dataset.task, batch, group.runtime, config)
    return meters[every]


def measured(
    prepared: PreparedJob, group: JobGroup, train_stream: Stream, provenance: Mapping[str, Any], meters: Meters
) -> tuple[Caches | None, list[tuple[str, ...]]]:
    """(what is cached, the cost of each phase as rows of the freeze report); nothing where all trains always."""
    job, phases, network, runtime = prepared.job, prepared.phases, prepared.network, group.runtime
    every = frozenset(network.parameters())
    if runtime.shares or (all(p.trainable == every for p in phases) and not job.config.dry_run):
        return None, []
    known = meter(prepared, group, train_stream, meters)
    costs = [known.phase(p, prepared.training.settings.recompute) for p in phases]
    unfrozen = known.phase(Phase(0, 1, every, cut=0))
    # What the weights below the cut do not tell: the data, and the code that the model is
    data = {k: provenance[k] for k in ("dataset", "files", "model", "hydratune")} | {"form": train_stream.form}
    samples = {name: fingerprint({**data, "split": name}) for name in ("train", "val")}
    rows = [known.row_bytes(p.cut) for p in phases]
    home = cache_home() / "features"
    caches, kept = plan_caches(job.config.cache, phases, costs, rows, train_stream, runtime, home, samples)
    return caches, cost_rows(phases, costs, unfrozen, kept)
