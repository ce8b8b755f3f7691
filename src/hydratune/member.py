"""What one job brings into a loop: its network, phases and components, built and checked before anything is trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from hydratune import construct, story
from hydratune.assemble import Job, strategy_node
from hydratune.company import launched
from hydratune.data.dataset import Dataset
from hydratune.data.stream import Stream
from hydratune.engine.probe import cost_meter
from hydratune.engine.settings import Settings
from hydratune.engine.trunk import Caches, plan_caches
from hydratune.fingerprint import content, differences, fingerprint
from hydratune.freeze import report
from hydratune.freeze.cost import CostMeter
from hydratune.freeze.phases import checked, with_norms
from hydratune.markup import as_shown
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.network import Network, as_body, build_network
from hydratune.optim import Recipe, Schedule
from hydratune.origin import Origin
from hydratune.overrides import command_again
from hydratune.pretrained import InitRules, load_into
from hydratune.record import checkpoint
from hydratune.record.features import cache_home
from hydratune.record.run import claim, read_record
from hydratune.runtime import Numerics, Precision, Runtime
from hydratune.secrets import hidden_in
from hydratune.types import Body, FreezeStrategy, LoadReport, Phase, Spec, Task


@dataclass(frozen=True, eq=False)
class Member:
    """One job, ready to be a trial. `freeze`: what its strategy was built from; `snapshot`: where it goes on from."""

    job: Job
    network: Network
    base: Mapping[str, torch.Tensor]  # the network's tensors but for what its strategy adds: what `init_from` fills
    phases: Sequence[Phase]
    recipe: Recipe
    schedule: Schedule
    settings: Settings
    freeze: Mapping[str, Any]
    snapshot: checkpoint.Snapshot | None
    known: Mapping[str, Any]  # run.json as it was found

    @property
    def first_step(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.state["step"]

    @property
    def fork(self) -> int:
        """The first group that it ever changes."""
        return min(p.cut for p in self.phases)

    @property
    def resumes(self) -> bool:
        """Whether it needs no origin: its own checkpoint has all."""
        return self.snapshot is not None and self.known.get("init_from") == self.job.config["init_from"]

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
        made, seen = self.known.get("made_of"), self.known.get("runtime")
        if not made or not seen or seen.get("device") != str(runtime.torch_device):
            return None
        again = json.loads(json.dumps(self.made_of(made.get("origin"), files, runtime.precision)))
        return None if differences(made, again) else Numerics.read(seen)

    def made_of(self, origin: str | None, files: str, precision: str) -> dict[str, Any]:
        """What determines its weights. origin: the hash of those that it starts from."""
        return content({**self.job.config, "freeze": self.freeze}, origin, files, precision)

    def halts(self, eval_every: int) -> int:
        """The step it goes to: its last, or the first evaluation at or after its halt."""
        last = self.phases[-1].last_step
        if self.job.halt is None:
            return last
        return min(math.ceil(self.job.halt * last / eval_every - 1e-9) * eval_every, last)

    def refuse_changes(self, made_of: Mapping[str, Any]) -> None:
        """Raises ValueError where the checkpoint was made by another configuration."""
        changed = differences(self.known.get("made_of", {}), json.loads(json.dumps(made_of)))
        if self.snapshot is not None and changed:
            directory = self.job.directory
            raise ValueError(
                f"resume: this configuration does not give the weights that {directory} holds. Changed: "
                f"{'; '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}. init_from={directory} trains on from it"
            )

    def record(self, origin: Origin, made_of: Mapping[str, Any], runtime: Runtime, how: str) -> dict[str, Any]:
        """What run.json says from the first step on. how: precision and layout were chosen."""
        job, known = self.job, self.known
        return {
            "stage": job.config["stage"],
            "command": job.command,
            "overrides": list(job.overrides),
            "sweep": job.sweep,
            "asked": job.asked,
            "fingerprint": fingerprint(made_of),
            "made_of": made_of,
            "init_from": job.config["init_from"],
            "lineage": known["lineage"] if self.resumes else origin.lineage,
            "seed": job.config["seed"],
            "trust": list(job.trust),
            "num_steps": self.phases[-1].last_step,
            "last_phase": self.phases[-1].first_step,
            "started": known.get("started") or story.now(),
            "versions": story.versions(),
            "runtime": {**runtime.describe(), "precision_choice": how},
            "again": self._again(runtime, origin.lineage),
        }

    def _again(self, runtime: Runtime, lineage: Mapping[str, Any] | None) -> str:
        """A command that makes the same bits by itself on a machine of this kind."""
        pinned = runtime.numerics.overrides().split()
        if self.job.config["init_from"] == "auto" and "run" in (lineage or {}):
            began = read_record(Path(lineage["run"])).get("runtime") if lineage else None
            pinned += Numerics.read(began).overrides("pretrain.runtime").split() if began else []
        return command_again(self.job.command, self.job.overrides, self.freeze.keys(), pinned)

    def above(self, trunk: Network) -> Member:
        """The same member with `trunk`'s groups below all that it will ever change: one copy serves all."""
        return replace(self, network=self.network.above(trunk, self.fork))


def build_member(job: Job, network: Network, steps_per_epoch: int) -> Member:
    """Raises ValueError for whatever the job cannot run with. `network` becomes the member's own."""
    config = job.config
    strategy = strategy_node(config["freeze"], job.sweep, job.trust)
    freeze: FreezeStrategy = construct.construct(strategy, "freeze", job.trust)
    norm = config["freeze"].get("norm") or "frozen"
    parts = {k: construct.construct(config[k], k, job.trust) for k in ("optimizer", "schedule", "engine")}
    resumed, known = _resumable(job), read_record(job.directory)
    base = network.state_dict()
    network = _adapted(network, freeze, config["seed"])
    num_steps = config["steps"] or config["epochs"] * steps_per_epoch
    planned = checked(freeze.phases(network.groups, num_steps), network.groups, num_steps)
    phases = with_norms(planned, network.groups, norm)
    return Member(
        job, network, base, phases, parts["optimizer"], parts["schedule"], parts["engine"], {**strategy, "norm": norm},
        checkpoint.load(resumed) if resumed is not None else None, known,
    )  # fmt: skip


def meter(
    member: Member, task: Task, runtime: Runtime, train_stream: Stream, meters: dict[frozenset[str], CostMeter]
) -> CostMeter:
    """That of another member whose network is made alike, or a new one."""
    every = frozenset(member.network.parameters())
    if every not in meters:
        batch = next(train_stream.batches(0, 1))
        meters[every] = cost_meter(member.network, task, batch, runtime, member.recipe)
    return meters[every]


def measured(
    member: Member, task: Task, runtime: Runtime, train_stream: Stream, made_of: Mapping[str, Any],
    meters: dict[frozenset[str], CostMeter],
) -> tuple[Caches | None, list[tuple[str, ...]]]:  # fmt: skip
    """(what is cached, the cost of each phase as rows of the freeze report); nothing where all trains always."""
    job, phases, network = member.job, member.phases, member.network
    every = frozenset(network.parameters())
    if runtime.shares or (all(p.trainable == every for p in phases) and not job.config["dry_run"]):
        return None, []
    known = meter(member, task, runtime, train_stream, meters)
    costs = [known.phase(p) for p in phases]
    unfrozen = known.phase(Phase(0, 1, every, cut=0))
    # What the weights below the cut do not tell: the data, and the code that the model is
    data = {k: made_of[k] for k in ("dataset", "files", "model", "hydratune")} | {"form": train_stream.form}
    samples = {name: fingerprint({**data, "split": name}) for name in ("train", "val")}
    mode = job.config["freeze"].get("cache") or "auto"
    rows = [known.row_bytes(p.cut) for p in phases]
    home = cache_home() / "features"
    caches, said = plan_caches(mode, phases, costs, rows, train_stream, runtime, home, samples)
    return caches, report.costs(phases, costs, unfrozen, said)


def first_network(job: Job, dataset: Dataset, spec: Spec) -> tuple[Body, Network]:
    """The body, and the network that it and a head for this task make; each tensor drawn from (seed, its name)."""
    seed = job.config["seed"]

    def build() -> Body:
        return as_body(construct.construct(job.config["model"], "model", job.trust, **dataset.supplied()))

    body = initialised(seed, build, lambda b: b.source.named_parameters())
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
    own: Mapping[str, torch.Tensor], head: set[str], origin: Origin, spec: Spec, rules: InitRules
) -> LoadReport | None:
    """Copy the origin's tensors in; its head only where it was made for the same classes, or is asked for."""
    if origin.tensors is None:
        return None
    theirs, own_classes = hidden_in([origin.classes, list(spec.class_names)])  # as a checkpoint has them
    try:
        refused = rules.refuses_head(theirs, own_classes)
        return load_into(own, head, origin.tensors, origin.said, rules, refused)
    except ValueError as error:
        raise ValueError(f"{error}{origin.hint}") from None


def init_rules(config: Mapping[str, Any]) -> InitRules:
    """What the keys `init_*` say."""
    keys = ("init_share", "init_unused", "init_head", "init_key", "init_prefix", "init_map")
    return InitRules(*(config[key] for key in keys))


def _resumable(job: Job) -> Path | None:
    """The newest whole checkpoint of the job's own directory, where it is to go on."""
    directory = job.directory / "checkpoints"
    if job.config["resume"] is None:
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
