"""One run from its configuration to its result: assemble, train, select, test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hydratune import construct, story
from hydratune.assemble import COMPONENTS, Job, without_foreign_keys
from hydratune.data.augment import Augment
from hydratune.data.dataset import Dataset, Split
from hydratune.data.stream import Stream
from hydratune.engine.evaluate import evaluate
from hydratune.engine.loop import train
from hydratune.engine.probe import choose_precision
from hydratune.engine.settings import Settings
from hydratune.engine.trial import Trial
from hydratune.fingerprint import content, differences, fingerprint
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.network import Network, as_body, build_network
from hydratune.origin import Origin, find_origin
from hydratune.pretrained import load_into
from hydratune.record import checkpoint
from hydratune.record.progress import Screen
from hydratune.record.run import Run, read_record
from hydratune.runtime import Precision, Runtime
from hydratune.types import Body, DataSpec, FreezeStrategy, LoadReport


@dataclass(frozen=True)
class Result:
    directory: Path
    metric: float  # validation, at the best evaluation
    record: Mapping[str, Any]


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    screen = screen or Screen()
    config, seed = job.config, job.config["seed"]
    resumed, known = _resumable(job), read_record(job.directory)
    parts = {k: construct.construct(config[k], k, job.trust) for k in COMPONENTS if k not in ("model", "freeze")}
    strategy = without_foreign_keys(config["freeze"], job.sweep)
    freeze: FreezeStrategy = construct.construct(strategy, "freeze", job.trust)
    runtime: Runtime = parts["runtime"]
    runtime.start()
    dataset: Dataset = parts["dataset"]
    settings: Settings = parts["engine"]
    spec = dataset.spec()
    body, network = _network(job, dataset, spec, seed)
    train_split, val_split = dataset.split("train"), dataset.split("val")
    steps_per_epoch = max(len(train_split) // min(config["batch_size"], len(train_split)), 1)
    num_steps = config["steps"] or config["epochs"] * steps_per_epoch
    phases = freeze.phases(network.groups, num_steps)

    # All that can fail in this job has been tried; only now the pretraining that it may ask for.
    if resumed is not None and known.get("init_from") == config["init_from"]:
        origin = Origin("the run itself", hash=known["made_of"]["origin"], lineage=known["lineage"])
    else:
        origin = find_origin(job, body, screen, lambda pretraining: run_job(pretraining, screen).directory)
    made_of = content({**config, "freeze": strategy}, origin.hash, dataset.files(), runtime.precision)
    if resumed is not None:
        _refuse_changes(job, known, made_of)
    snapshot = checkpoint.load(resumed) if resumed is not None else None
    loaded = _load(network, origin, spec, config["init_share"])
    runtime, how = _settle_precision(job, runtime, network, dataset, spec, body, train_split, snapshot)
    network.to(runtime.torch_device, runtime.chosen.memory_format)

    def stream(split: Split, augment: Augment | None = None) -> Stream:
        return Stream(
            split, spec, config["batch_size"], runtime.torch_device, body.in_channels, augment, seed,
            runtime.chosen.memory_format,
        )  # fmt: skip

    if known.get("status") == "complete" and resumed is not None:
        return _complete(job, known, network, dataset, spec, runtime, stream, screen)
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
        train_stream, val_stream = stream(train_split, dataset.augment), stream(val_split)
        screen.line(f"{config['stage']}  {story.label(job)}  ->  {story.shown_path(job.directory)}")
        story.show_reports(screen, run, job, loaded, network, phases, runtime, how)
        if snapshot is None:
            story.show_batch(run, train_stream, spec)
        with screen.progress(config["stage"], first_step, num_steps) as line:
            train([trial], train_stream, val_stream, settings.cadence(steps_per_epoch), line, first_step)
        return _finish(job, run, trial, dataset, stream, val_stream, screen)


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


def _load(network: Network, origin: Origin, spec: DataSpec, share: float) -> LoadReport | None:
    """Copy the origin's tensors in; its head only where it was made for the same classes, as far as that is known."""
    if origin.tensors is None:
        return None
    head = set(network.head.names.values())
    other = {n for n in head if origin.classes is not None and list(origin.classes) != list(spec.class_names)}
    tensors = {n: t for n, t in origin.tensors.items() if n not in other}
    try:
        report = load_into(network.state_dict(), head, tensors, origin.said, share)
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


# ---- the end


def _complete(
    job: Job, known: Mapping[str, Any], network: Network, dataset: Dataset, spec: DataSpec, runtime: Runtime,
    stream: Callable[[Split], Stream], screen: Screen,
) -> Result:  # fmt: skip
    """A run that was finished already. test=true reads the test split of one that had not, a sweep's winner say."""
    metrics, monitor = dict(known["metrics"]), dataset.task.monitor
    if job.config["test"] is True and f"test_{monitor}" not in metrics:
        _load_best(network, job.directory / "checkpoints", known["best_step"])
        with Run(job.directory, {}, known["num_steps"]) as run:
            tested = evaluate(network, dataset.task, stream(dataset.split("test")), spec, runtime).compute()
            metrics |= {f"test_{k}": v for k, v in tested.items()}
            run.board.scalars({f"test/{k}": v for k, v in tested.items()}, known["best_step"])
            run.update(status="complete", metrics=metrics)
        screen.line(f"{story.shown_path(job.directory)}: test {monitor} {metrics[f'test_{monitor}']:.4f}")
    else:
        screen.line(f"{story.shown_path(job.directory)} is complete; nothing to do")
    return Result(job.directory, metrics[f"val_{monitor}"], {**known, "metrics": metrics})


def _load_best(network: Network, directory: Path, step: int) -> Path:
    """The best checkpoint's weights, averaged ones where there are any."""
    path = directory / f"step-{step:08d}"
    snapshot = checkpoint.load(path)
    network.load({**snapshot.model, **snapshot.ema})
    return path


def _finish(
    job: Job, run: Run, trial: Trial, dataset: Dataset, stream: Callable[[Split], Stream], val_stream: Stream,
    screen: Screen,
) -> Result:  # fmt: skip
    """Select by validation, look at the mistakes, read the test split once, and tell the story."""
    config, monitor, spec, runtime = job.config, dataset.task.monitor, trial.spec, trial.runtime
    step = trial.best["step"]
    best = _load_best(trial.network, run.checkpoints, step)
    metrics = {f"val_{k}": v for k, v in trial.best["metrics"].items()}
    seen = evaluate(trial.network, dataset.task, val_stream, spec, runtime)
    seen.compute()
    story.show_mistakes(run, seen, val_stream, spec, step)
    if config["test"] is True or (config["test"] == "auto" and not job.sweep):
        tested = evaluate(trial.network, dataset.task, stream(dataset.split("test")), spec, runtime).compute()
        metrics |= {f"test_{k}": v for k, v in tested.items()}
        run.board.scalars({f"test/{k}": v for k, v in tested.items()}, step)
    run.board.hparams(story.hparams(job), {f"result/{k}": v for k, v in metrics.items()}, trial.num_steps)
    run.update(
        status="complete",
        ended=story.now(),
        metrics=metrics,
        best_step=step,
        num_steps=trial.num_steps,
        stopped=trial.stopped,
        seconds=run.seconds,
        checkpoint={"path": f"checkpoints/{best.name}", "sha256": checkpoint.model_hash(best)},
    )
    story.show_result(screen, run, job, metrics, monitor, f"{step}/{trial.num_steps}")
    return Result(job.directory, metrics[f"val_{monitor}"], run.record)
