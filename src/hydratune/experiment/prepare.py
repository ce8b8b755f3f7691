"""Jobs made ready: every component built, every weight in its place, everything checked, before anything is trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from hydratune.config.fingerprint import content, differences, fingerprint
from hydratune.config.job import Job, JobConfig
from hydratune.config.overrides import command_again
from hydratune.core.markdown import as_shown
from hydratune.core.task import Task
from hydratune.core.types import Backbone, FreezeStrategy, LayerGroup, LoadReport, Phase, Spec
from hydratune.data.dataset import Dataset
from hydratune.distributed.process_group import launched
from hydratune.distributed.runtime import Numerics, Precision, Runtime
from hydratune.engine.plan import TrainingPlan
from hydratune.experiment import report
from hydratune.experiment.components import Training, body_of, training_of
from hydratune.experiment.init_from import Origin
from hydratune.experiment.selection import monitor_of
from hydratune.freeze.phases import checked, last_thaw, with_norms
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.load_weights import HeadAnswers, InitRules, load_into
from hydratune.models.network import Network, build_network
from hydratune.models.vision.levels import wanted_levels
from hydratune.record import checkpoint
from hydratune.record.claim import claim
from hydratune.record.run_record import Lineage, RunRecord


@dataclass(frozen=True, eq=False)
class PreparedJob:
    """One job, ready to be a trial. snapshot: where it goes on from; known: run.json as it was found."""

    job: Job
    network: Network
    base: Mapping[str, torch.Tensor]  # the network's tensors but for what its strategy adds: what `init_from` fills
    training: Training
    phases: Sequence[Phase]
    snapshot: checkpoint.Snapshot | None
    known: RunRecord
    gradient_norms: Mapping[str, float] | None = None  # by which its strategy has chosen what trains

    def plan(self, task: Task) -> TrainingPlan:
        own, config = self.training, self.job.config
        monitor = monitor_of(config.monitor, task)
        return TrainingPlan(self.phases, own.optimizer, own.schedule, own.settings, config.seed, monitor)

    @property
    def first_step(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.state["step"]

    @property
    def begins_generation(self) -> bool:
        """Whether its next step is the first one on a new generation of games."""
        steps = self.job.config.steps
        return self.job.config.selfplay and steps is not None and self.first_step % steps == 0

    @property
    def fork(self) -> int:
        """The first group that it ever changes."""
        return min(p.cut for p in self.phases)

    def frozen_at_random(self, loaded: LoadReport | None) -> list[str]:
        """Parameters that no phase trains, and that nothing was loaded into."""
        ever = frozenset().union(*(p.trainable for p in self.phases))
        never = [name for name in self.network.parameters() if name not in ever]
        return never if loaded is None else [name for name in never if name in loaded.initialised]

    @property
    def resumes(self) -> bool:
        """Whether it needs no origin: its own checkpoint has all."""
        return self.snapshot is not None and self.known.init_from == self.job.config.init_from

    def numerics(
        self, files: str, runtime: Runtime, probe: Callable[[], tuple[Precision, str]]
    ) -> tuple[Numerics, str]:
        """(what it computes with, how that was found): what it began with, what its sweep settled, else what `probe`
        finds. Threads that are typed beat the first two. files: as for `content`.
        """
        began = self._began_with(files, runtime)
        settled = Numerics.read(self.job.numerics) if "precision" in self.job.numerics else None
        found = began or settled
        if found is None:
            precision, how = probe()
            return Numerics(precision, torch.get_num_threads()), how
        threads = runtime.threads or found.threads
        how = "as it began" if began else "as the sweep has settled for all jobs like it"
        if threads != found.threads:
            how += f", but for the threads: it had {found.threads}, so its last bits are others from here on"
        return replace(found, threads=threads), how

    def _began_with(self, files: str, runtime: Runtime) -> Numerics | None:
        """As its checkpoint says; before there is one, as the record of the same run does."""
        if self.snapshot is not None:
            return Numerics.read(self.snapshot.state)
        made, seen = self.known.provenance, self.known.runtime
        if not made or not seen or seen.get("device") != str(runtime.torch_device):
            return None
        again = json.loads(json.dumps(self.provenance(made.get("origin"), files, runtime.precision)))
        return None if differences(made, again) else Numerics.read(seen)

    def provenance(self, origin: str | None, files: str, precision: str) -> dict[str, Any]:
        """What determines its weights. origin: the hash of those that it starts from."""
        return content(self.job.config, self.training.strategy, origin, files, precision)

    def halts(self, eval_every: int) -> int:
        """The step it goes to: its last, or the first evaluation at or after its halt."""
        last = self.phases[-1].last_step
        if self.job.halt is None:
            return last
        return min(math.ceil(self.job.halt * last / eval_every - 1e-9) * eval_every, last)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be done: all steps are made, or it was stopped before."""
        if self.known.status != "complete" or self.snapshot is None:
            return False
        return self.known.stopped is not None or self.first_step >= self.phases[-1].last_step

    def record(self, origin: Origin, provenance: Mapping[str, Any], runtime: Runtime, how: str) -> RunRecord:
        """What run.json says from the first step on. how: precision and layout were chosen."""
        job, known = self.job, self.known
        lineage = known.lineage if self.resumes else origin.lineage
        return known.changed(
            stage=job.config.stage,
            command=job.command,
            overrides=list(job.overrides),
            choices=dict(job.choices),
            sweep=job.sweep,
            config_hash=job.config_hash or None,
            fingerprint=fingerprint(provenance),
            provenance=provenance,
            init_from=job.config.init_from,
            lineage=lineage,
            seed=job.config.seed,
            trust=list(job.trust),
            num_steps=self.phases[-1].last_step,
            last_phase=last_thaw(self.phases),
            gradient_norms=self.gradient_norms,
            started=known.started or report.now(),
            versions=report.versions(),
            runtime={**runtime.describe(), "precision_choice": how},
            again=self._again(runtime, lineage),
        )

    def _again(self, runtime: Runtime, lineage: Lineage | None) -> str:
        """A command that makes the same bits by itself on a machine of this kind."""
        pinned = runtime.numerics.overrides().split()
        if self.job.config.init_from == "auto" and lineage is not None and lineage.run is not None:
            began = RunRecord.read(Path(lineage.run)).runtime
            pinned += Numerics.read(began).overrides("pretrain.runtime").split() if began else []
        keys = self.training.strategy.keys()
        return command_again(self.job.command, self.job.overrides, keys, pinned)

    @property
    def undecided(self) -> bool:
        """Whether its strategy waits for the gradients of the first batches; until then its phases are provisional."""
        return getattr(self.training.freeze, "undecided", False)

    def decided(self, norms: Mapping[str, float]) -> PreparedJob:
        """The same job with its strategy's choice. norms: as `engine.gradients` has them."""
        training = replace(self.training, freeze=cast(Any, self.training.freeze).decided(norms))
        steps = self.phases[-1].last_step
        phases = planned_phases(training.freeze, self.network.groups, steps, self.job.config.norm)
        return replace(self, training=training, phases=phases, gradient_norms=norms)

    def above(self, trunk: Network) -> PreparedJob:
        """The same member with `trunk`'s groups below all that it will ever change: one copy serves all."""
        return replace(self, network=self.network.above(trunk, self.fork))


def hold_once(jobs: Sequence[PreparedJob]) -> None:
    """One tensor for all that never train it, however low their updates begin: a frozen base is held once.

    They start from the same weights, and nobody writes there but the one who restores what is there already.
    """
    first: dict[str, torch.nn.Parameter] = {}
    for prepared in jobs:
        ever = frozenset().union(*(p.trainable for p in prepared.phases))
        never = {n: p for n, p in prepared.network.parameters().items() if n not in ever}
        prepared.network.take({n: first.setdefault(n, p) for n, p in never.items()})


def planned_phases(freeze: FreezeStrategy, groups: Sequence[LayerGroup], steps: int, norm: str) -> Sequence[Phase]:
    """Raises ValueError for what the strategy cannot do with these groups."""
    return with_norms(checked(freeze.phases(groups, steps), groups, steps), groups, norm)


def prepare_job(job: Job, network: Network, steps_per_epoch: int, samples: int) -> PreparedJob:
    """Raises ValueError for whatever the job cannot run with. `network` becomes the job's own."""
    config, training = job.config, training_of(job)
    resumed, known = _resumable(job), RunRecord.read(job.directory)
    base = network.state_dict()
    network = _adapted(network, training.freeze, config.seed)
    num_steps = config.total_steps or training.schedule.num_steps(samples) or (config.epochs or 0) * steps_per_epoch
    phases = planned_phases(training.freeze, network.groups, num_steps, config.norm)
    snapshot = checkpoint.load(resumed) if resumed is not None else None
    prepared = PreparedJob(job, network, base, training, phases, snapshot, known)
    # What was chosen in a run belongs to it, however its weights are by now.
    chosen = known.gradient_norms if snapshot is not None and prepared.undecided else None
    return prepared if chosen is None else prepared.decided(chosen)


def first_network(job: Job, dataset: Dataset, spec: Spec) -> tuple[Backbone, Network]:
    """The body, and the network that it and a head for this task make; each tensor drawn from (seed, its name)."""
    seed = job.config.seed
    body = initialised(seed, lambda: body_of(job, dataset), lambda b: b.source.named_parameters())
    if dataset.task.dense:
        body = wanted_levels(body, dataset.example(body), dataset.task.first_level)
    features = dataset.example(body)
    shapes = [list(t.shape[1:]) for t in tree_flatten(features)[0]]
    try:
        with torch.no_grad():
            for _, module in body.groups:
                features = module.eval()(features)
    except (RuntimeError, TypeError, AttributeError) as error:
        if isinstance(features, Tensor):
            raise ValueError(f"model: cannot take inputs of {shapes[0]} ({error})") from None
        raise ValueError("model: takes no text, and the data set has nothing else; model=hf does") from None
    if body.head is not None:
        return body, build_network(body, body.head)
    head = initialised(seed, lambda: dataset.task.build_head(features, spec), named_tensors(f"{body.head_name}."))
    return body, build_network(body, head)


def _adapted(network: Network, freeze: FreezeStrategy, seed: int) -> Network:
    """The network with what the strategy adds to it, each new tensor drawn from (seed, its name)."""
    adapt = getattr(freeze, "adapt", None)
    if adapt is None:
        return network
    before = network.parameters().keys()

    def added(result: Network) -> list[tuple[str, torch.Tensor]]:
        return [(n, p) for n, p in result.parameters().items() if n not in before]

    return initialised(seed, lambda: Network(adapt(network.groups)), added)


def load_origin(
    own: Mapping[str, torch.Tensor], head: set[str], origin: Origin, answers: HeadAnswers, rules: InitRules
) -> LoadReport | None:
    """Copy the origin's tensors in; its head only where it answers the same, or is asked for."""
    if origin.tensors is None:
        return None
    try:
        refused = rules.refuses_head(origin.head, answers)
        return load_into(own, head, origin.tensors, origin.message, rules, refused)
    except ValueError as error:
        raise ValueError(f"{error}{origin.hint}") from None


def init_rules(config: JobConfig) -> InitRules:
    """What the keys `init_*` say."""
    return InitRules(
        config.init_share, config.init_unused, config.init_head, config.init_key, config.init_prefix, config.init_map
    )


def _resumable(job: Job) -> Path | None:
    """The newest whole checkpoint of the job's own directory, where it is to go on."""
    directory = job.directory / "checkpoints"
    if job.config.resume is None:
        if checkpoint.steps(directory):
            raise ValueError(
                f"{job.directory} already holds a run; resume=auto goes on with it, another name= starts anew"
            )
        return None
    if checkpoint.steps(directory) and not launched().get("rank", 0):
        os.close(claim(job.directory))  # what a live run has there may be gone before it is read
    newest, complaints = checkpoint.newest_valid(directory)
    for complaint in complaints:
        print(as_shown(f"warning: {complaint}; the one before it is used"))
    return newest
