"""One run from its configuration to its result: assemble, train, select, test."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydratune import construct, story
from hydratune.assemble import COMPONENTS, Job, command_line, without_foreign_keys
from hydratune.data.dataset import Dataset
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
from hydratune.record.progress import Screen, duration
from hydratune.record.run import Run, read_record
from hydratune.runtime import Precision, Runtime
from hydratune.types import Body, DataSpec, LoadReport


@dataclass(frozen=True)
class Result:
    directory: Path
    metric: float  # validation, at the best evaluation
    record: Mapping[str, Any]


def run_job(job: Job, screen: Screen | None = None) -> Result:
    """Train as the job says in its directory; goes on where that already holds a checkpoint and resume=auto."""
    screen = screen or Screen()
    config = job.config
    parts = {k: construct.construct(config[k], k, job.trust) for k in COMPONENTS if k not in ("model", "freeze")}
    freeze = construct.construct(without_foreign_keys(config["freeze"], job.sweep), "freeze", job.trust)
    runtime: Runtime = parts["runtime"]
    runtime.start()
    dataset: Dataset = parts["dataset"]
    settings: Settings = parts["engine"]
    spec = dataset.spec()

    seed = config["seed"]
    shape = spec.input_shape
    body, network = _network(job, dataset, spec, seed)
    train_split, val_split = dataset.split("train"), dataset.split("val")
    steps_per_epoch = max(len(train_split) // min(config["batch_size"], len(train_split)), 1)
    num_steps = config["steps"] or config["epochs"] * steps_per_epoch
    phases = freeze.phases(network.groups, num_steps)
    # All that can fail in this job has been tried; only now the pretraining that it may ask for.
    origin = find_origin(job, body, screen, lambda pretraining: run_job(pretraining, screen).directory)
    resumed = _resumable(job)
    made_of = content(
        {**config, "freeze": without_foreign_keys(config["freeze"], job.sweep)},
        origin.hash, dataset.files(), runtime.precision,
    )  # fmt: skip
    known = read_record(job.directory)
    if resumed is not None:
        _refuse_changes(job, known, made_of)
        if known.get("status") == "complete":
            screen.line(f"{job.directory} is complete; nothing to do")
            return Result(job.directory, known["metrics"][f"val_{dataset.task.monitor}"], known)

    loaded = _load(network, origin, config["init_share"])

    snapshot = checkpoint.load(resumed) if resumed is not None else None
    network.to(runtime.torch_device)
    if snapshot is not None:
        runtime, how = runtime.choose(Precision.parse(snapshot.state["precision"])), "the checkpoint's"
    else:
        probe_stream = Stream(train_split, spec, config["batch_size"], runtime.torch_device, body.in_channels)
        batch = next(probe_stream.once())
        chosen, how = choose_precision(
            network, dataset.task, batch, runtime, f"{json.dumps(config['model'], sort_keys=True)} {shape}"
        )
        runtime = runtime.choose(chosen)
    network.to(runtime.torch_device, runtime.chosen.memory_format)

    def stream(split: Any, augment: Any = None) -> Stream:
        return Stream(
            split, spec, config["batch_size"], runtime.torch_device, body.in_channels, augment, seed,
            runtime.chosen.memory_format,
        )  # fmt: skip

    first_step = 0 if snapshot is None else snapshot.state["step"]
    record = {
        "stage": config["stage"],
        "command": command_line(),
        "overrides": list(job.overrides),
        "fingerprint": fingerprint(made_of),
        "made_of": made_of,
        "lineage": origin.lineage,
        "seed": seed,
        "trust": list(job.trust),
        "started": known.get("started") or story.now(),
        "versions": story.versions(),
        "runtime": {**runtime.describe(), "precision_choice": how},
    }
    clock = time.perf_counter()
    with Run(job.directory, record, first_step) as run:
        trial = Trial(
            network, phases, dataset.task, spec, parts["optimizer"], parts["schedule"], settings, runtime, run, seed
        )
        if snapshot is not None:
            trial.restore(snapshot)
            screen.line(f"resuming {job.directory} from step {first_step} of {num_steps}")
        train_stream, val_stream = stream(train_split, dataset.augment), stream(val_split)
        screen.line(f"{config['stage']}  {story.label(job)}  ->  {story.shown_path(job.directory)}")
        story.show_reports(screen, run, job, loaded, network, phases, runtime, how)
        if snapshot is None:
            story.show_batch(run, train_stream, spec)
        with screen.progress(config["stage"], first_step, num_steps) as line:
            train([trial], train_stream, val_stream, settings.cadence(steps_per_epoch), line, first_step)
        return _finish(job, run, trial, dataset, spec, stream, val_split, screen, time.perf_counter() - clock)


# ---- the network and its first weights


def _network(job: Job, dataset: Dataset, spec: DataSpec, seed: int) -> tuple[Body, Network]:
    """The body, and the network that it and a head for this task make; each tensor drawn from (seed, its name)."""
    shape = spec.input_shape

    def build() -> Body:
        return as_body(construct.construct(job.config["model"], "model", job.trust, input_shape=shape))

    body = initialised(seed, build, lambda b: b.source.named_parameters())
    channels = body.in_channels or shape[0]
    features = torch.zeros(2, channels, *shape[1:])  # two: BatchNorm refuses one; the features are [2, D]
    with torch.no_grad():
        for _, module in body.groups:
            module.eval()
            features = module(features)
    head = initialised(seed, lambda: dataset.task.build_head(features[:1], spec), named_tensors(f"{body.head_name}."))
    return body, build_network(body, head)


def _load(network: Network, origin: Origin, share: float) -> LoadReport | None:
    if origin.tensors is None:
        return None
    return load_into(network.state_dict(), set(network.head.names.values()), origin.tensors, origin.said, share)


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


def _finish(
    job: Job, run: Run, trial: Trial, dataset: Dataset, spec: DataSpec, stream: Any, val_split: Any, screen: Screen,
    seconds: float,
) -> Result:  # fmt: skip
    """Select by validation, look at the mistakes, read the test split once, and tell the story."""
    config, monitor = job.config, dataset.task.monitor
    step = trial.best["step"]
    best = run.checkpoints / f"step-{step:08d}"
    snapshot = checkpoint.load(best)
    trial.network.load({**snapshot.model, **snapshot.ema})
    metrics = {f"val_{k}": v for k, v in trial.best["metrics"].items()}
    val_stream = stream(val_split)
    seen = evaluate(trial.network, dataset.task, val_stream, spec, trial.runtime)
    seen.compute()
    story.show_mistakes(run, seen, val_stream, spec, step)
    test = config["test"] if isinstance(config["test"], bool) else not job.sweep
    if test:
        tested = evaluate(trial.network, dataset.task, stream(dataset.split("test")), spec, trial.runtime).compute()
        metrics |= {f"test_{k}": v for k, v in tested.items()}
        run.board.scalars({f"test/{k}": v for k, v in tested.items()}, step)
    done = trial.num_steps if trial.stopped is None else (trial.best["step"])
    run.board.hparams(story.hparams(job), {f"result/{k}": v for k, v in metrics.items()}, done)
    run.update(
        status="complete",
        ended=story.now(),
        metrics=metrics,
        best_step=step,
        num_steps=trial.num_steps,
        stopped=trial.stopped,
        seconds=round(float(run.record.get("seconds") or 0) + seconds, 2),
        checkpoint={"path": f"checkpoints/{best.name}", "sha256": checkpoint.model_hash(best)},
    )
    parent = (run.record.get("lineage") or {}).get("metrics")
    rows = [
        [
            config["stage"],
            story.label(job),
            *story.shown(metrics, monitor),
            f"{step}/{trial.num_steps}",
            duration(seconds),
        ]
    ]
    if parent:
        rows.insert(0, ["pretrain", run.record["lineage"]["run"], *story.shown(parent, monitor), "", ""])
    screen.table("result", ("stage", "what", f"val {monitor}", f"test {monitor}", "best step", "time"), rows)
    screen.line(f"run directory:  {story.shown_path(job.directory)}")
    screen.line(f"look at it:     tensorboard --logdir {shlex.quote(str(config['outputs']))}")
    return Result(job.directory, metrics[f"val_{monitor}"], run.record)
