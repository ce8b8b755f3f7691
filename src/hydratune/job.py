"""One run from its configuration to its result: assemble, train, select, test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hydratune import construct, story
from hydratune.assemble import COMPONENTS, Job, strategy_node
from hydratune.data.augment import Augment
from hydratune.data.dataset import Dataset, Split
from hydratune.data.stream import Stream
from hydratune.engine.loop import train
from hydratune.engine.probe import choose_precision, cost_meter
from hydratune.engine.settings import Settings
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, plan_caches
from hydratune.fingerprint import content, differences, fingerprint
from hydratune.freeze import report
from hydratune.freeze.phases import with_norms
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.network import Network, as_body, build_network
from hydratune.optim import Recipe
from hydratune.origin import Origin, find_origin
from hydratune.outcome import Result, complete, finish
from hydratune.pretrained import load_into
from hydratune.record import checkpoint
from hydratune.record.features import cache_home
from hydratune.record.progress import Screen
from hydratune.record.run import Run, read_record
from hydratune.runtime import Precision, Runtime
from hydratune.types import Body, DataSpec, FreezeStrategy, LoadReport, Phase


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    screen = screen or Screen()
    config, seed = job.config, job.config["seed"]
    resumed, known = _resumable(job), read_record(job.directory)
    parts = {k: construct.construct(config[k], k, job.trust) for k in COMPONENTS if k not in ("model", "freeze")}
    strategy = strategy_node(config["freeze"], job.sweep)
    freeze: FreezeStrategy = construct.construct(strategy, "freeze", job.trust)
    norm = config["freeze"].get("norm") or "frozen"
    runtime: Runtime = parts["runtime"]
    runtime.start()
    dataset: Dataset = parts["dataset"]
    settings: Settings = parts["engine"]
    spec = dataset.spec()
    body, network = _network(job, dataset, spec, seed)
    train_split, val_split = dataset.split("train"), dataset.split("val")
    steps_per_epoch = max(len(train_split) // min(config["batch_size"], len(train_split)), 1)
    num_steps = config["steps"] or config["epochs"] * steps_per_epoch
    base = network.state_dict()  # what `init_from` fills
    network = _adapted(network, freeze, seed)
    phases = with_norms(freeze.phases(network.groups, num_steps), network.groups, norm)

    # All that can fail in this job has been tried; only now the pretraining that it may ask for.
    if config["dry_run"]:
        origin = Origin("nothing: a dry run loads nothing")
    elif resumed is not None and known.get("init_from") == config["init_from"]:
        origin = Origin("the run itself", hash=known["made_of"]["origin"], lineage=known["lineage"])
    else:
        origin = find_origin(job, body, screen, lambda pretraining: run_job(pretraining, screen).directory)
    made_of = content({**config, "freeze": {**strategy, "norm": norm}}, origin.hash, dataset.files(), runtime.precision)
    if resumed is not None:
        _refuse_changes(job, known, made_of)
    snapshot = checkpoint.load(resumed) if resumed is not None else None
    loaded = _load(base, set(network.head.names.values()), origin, spec, config["init_share"])
    runtime, how = _settle_precision(job, runtime, network, dataset, spec, body, train_split, snapshot)
    network.to(runtime.torch_device, runtime.chosen.memory_format)

    def stream(split: Split, augment: Augment | None = None) -> Stream:
        return Stream(
            split, spec, config["batch_size"], runtime.torch_device, body.in_channels, augment, seed,
            runtime.chosen.memory_format,
        )  # fmt: skip

    train_stream, val_stream = stream(train_split, dataset.augment), stream(val_split)
    if known.get("status") == "complete" and resumed is not None:
        return complete(job, known, network, dataset, spec, runtime, stream, screen)
    caches, costs = _measure(job, phases, network, dataset, train_stream, runtime, parts["optimizer"], made_of)
    if config["dry_run"]:
        screen.line(
            f"dry run of {config['stage']}  {story.label(job)}: {num_steps} steps, nothing is trained or written"
        )
        story.show_phases(screen, None, network, phases, costs, runtime, how)
        return Result(job.directory, math.nan, {})
    first_step = 0 if snapshot is None else snapshot.state["step"]
    record = {
        "stage": config["stage"],
        "command": job.command,
        "overrides": list(job.overrides),
        "sweep": job.sweep,
        "fingerprint": fingerprint(made_of),
        "made_of": made_of,
        "init_from": config["init_from"],
        "lineage": origin.lineage,
        "seed": seed,
        "trust": list(job.trust),
        "started": known.get("started") or story.now(),
        "versions": story.versions(),
        "runtime": {**runtime.describe(), "precision_choice": how},
    }
    with Run(job.directory, record, first_step) as run:
        trial = Trial(
            network, phases, dataset.task, spec, parts["optimizer"], parts["schedule"], settings, runtime, run, seed
        )
        if snapshot is not None:
            trial.restore(snapshot)
            screen.line(f"resuming {story.shown_path(job.directory)} from step {first_step} of {num_steps}")
        screen.line(f"{config['stage']}  {story.label(job)}  ->  {story.shown_path(job.directory)}")
        run.board.text("config", f"```yaml\n{job.text}\n```")
        story.show_load(screen, run, loaded)
        story.show_phases(screen, run, network, phases, costs, runtime, how)
        if snapshot is None:
            story.show_batch(run, train_stream, spec)
        with screen.progress(config["stage"], first_step, num_steps) as line:
            train([trial], train_stream, val_stream, settings.cadence(steps_per_epoch), line, first_step, caches)
        return finish(job, run, trial, dataset, stream, val_stream, screen)


# ---- the network and its first weights


def _network(job: Job, dataset: Dataset, spec: DataSpec, seed: int) -> tuple[Body, Network]:
    """The body, and the network that it and a head for this task make; each tensor drawn from (seed, its name)."""
    shape = spec.input_shape

    def build() -> Body:
        return as_body(construct.construct(job.config["model"], "model", job.trust, input_shape=shape))

    body = initialised(seed, build, lambda b: b.source.named_parameters())
    channels = body.in_channels or shape[0]
    features = torch.zeros(1, channels, *shape[1:])
    try:
        with torch.no_grad():
            for _, module in body.groups:
                features = module.eval()(features)
    except RuntimeError as error:
        raise ValueError(f"model: cannot take images of {list(shape)} ({error})") from None
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


def _load(
    own: Mapping[str, torch.Tensor], head: set[str], origin: Origin, spec: DataSpec, share: float
) -> LoadReport | None:
    """Copy the origin's tensors in; its head only where it was made for the same classes, as far as that is known."""
    if origin.tensors is None:
        return None
    other = {n for n in head if origin.classes is not None and list(origin.classes) != list(spec.class_names)}
    tensors = {n: t for n, t in origin.tensors.items() if n not in other}
    try:
        report = load_into(own, head, tensors, origin.said, share)
    except ValueError as error:
        raise ValueError(f"{error}{origin.hint}") from None
    reasons = dict.fromkeys(other & origin.tensors.keys(), "made for other classes")
    return replace(report, skipped={**report.skipped, **reasons}, initialised={**report.initialised, **reasons})


def _settle_precision(
    job: Job, runtime: Runtime, network: Network, dataset: Dataset, spec: DataSpec, body: Body, split: Split,
    snapshot: checkpoint.Snapshot | None,
) -> tuple[Runtime, str]:  # fmt: skip
    """(the runtime with its precision chosen, how it was). A resumed run keeps what it began with."""
    if snapshot is not None:
        return runtime.choose(Precision.parse(snapshot.state["precision"])), "the checkpoint's"
    network.to(runtime.torch_device)
    batches = Stream(split, spec, job.config["batch_size"], runtime.torch_device, body.in_channels)
    model = f"{json.dumps(job.config['model'], sort_keys=True)} {spec.input_shape}"
    chosen, how = choose_precision(network, dataset.task, next(batches.once()), runtime, model)
    return runtime.choose(chosen), how


def _measure(
    job: Job, phases: Sequence[Phase], network: Network, dataset: Dataset, train_stream: Stream, runtime: Runtime,
    recipe: Recipe, made_of: Mapping[str, Any],
) -> tuple[Caches | None, list[tuple[str, ...]]]:  # fmt: skip
    """(what is cached, the cost of each phase as rows of the freeze report); nothing where all trains all the time."""
    every = frozenset(network.parameters())
    if all(p.trainable == every for p in phases) and not job.config["dry_run"]:
        return None, []
    meter = cost_meter(network, dataset.task, next(train_stream.batches(0, 1)), runtime, recipe)
    measured = [meter.phase(p) for p in phases]
    unfrozen = meter.phase(Phase(0, 1, every, cut=0))
    # What the weights below the cut do not tell: the data, and the code that the model is
    data = {k: made_of[k] for k in ("dataset", "files", "model", "hydratune")} | {"channels": train_stream.channels}
    samples = {name: fingerprint({**data, "split": name}) for name in ("train", "val")}
    mode = job.config["freeze"].get("cache") or "auto"
    rows = [meter.row_bytes(p.cut) for p in phases]
    home = cache_home() / "features"
    caches, said = plan_caches(mode, phases, measured, rows, train_stream, runtime, home, samples)
    return caches, report.costs(phases, measured, unfrozen, said)


# ---- resuming


def _resumable(job: Job) -> Path | None:
    """The newest whole checkpoint of the job's own directory, where it is to go on."""
    directory = job.directory / "checkpoints"
    if job.config["resume"] is None:
        if checkpoint.steps(directory):
            raise ValueError(
                f"{job.directory} already holds a run; resume=auto goes on with it, another name= starts anew"
            )
        return None
    newest, complaints = checkpoint.newest_valid(directory)
    for complaint in complaints:
        print(f"warning: {complaint}; the one before it is used")
    return newest


def _refuse_changes(job: Job, known: Mapping[str, Any], made_of: Mapping[str, Any]) -> None:
    changed = differences(known.get("made_of", {}), json.loads(json.dumps(made_of)))
    if changed:
        raise ValueError(
            f"resume: this configuration does not give the weights that {job.directory} holds. Changed: "
            f"{'; '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}. init_from={job.directory} trains on from it"
        )
