"""One run from its configuration to its result: assemble, train, select, test."""

from __future__ import annotations

import datetime
import fcntl
import json
import platform
import shlex
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hydratune import __version__, construct
from hydratune.assemble import COMPONENTS, Job, command_line, without_foreign_keys
from hydratune.data.dataset import Dataset
from hydratune.data.stream import Stream
from hydratune.engine.evaluate import evaluate
from hydratune.engine.loop import train
from hydratune.engine.probe import choose_precision
from hydratune.engine.trial import Settings, Trial
from hydratune.fingerprint import content, differences, fingerprint
from hydratune.freeze import report
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.network import Network, as_body, build_network
from hydratune.pretrained import load_into, read_tensors
from hydratune.record import checkpoint, pictures
from hydratune.record.progress import Screen, duration, markdown_table
from hydratune.record.run import Run, read_record, write_json
from hydratune.runtime import Precision, Runtime
from hydratune.types import Body, DataSpec, LoadReport

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Result:
    directory: Path
    metric: float  # validation, at the best evaluation
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from."""

    said: str  # what the configuration calls it
    tensors: Mapping[str, torch.Tensor] | None = None
    hash: str | None = None
    lineage: Mapping[str, Any] | None = None


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
    origin = _origin(job, body, screen)
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
        "started": known.get("started") or _now(),
        "versions": _versions(),
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
        screen.line(f"{config['stage']}  {_label(job)}  ->  {_shown_path(job.directory)}")
        _show_reports(screen, run, job, loaded, network, phases, runtime, how)
        if snapshot is None:
            _show_batch(run, train_stream, spec)
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


def _origin(job: Job, body: Body, screen: Screen) -> Origin:
    """Follow `init_from`. Pretraining that `auto` asks for runs here, once."""
    asked = job.config["init_from"]
    if asked in (None, "auto") and body.weights is not None:
        said, tensors = body.weights()
        return Origin(f"model.weights: {said}", tensors, hash=f"weights:{said}", lineage={"weights": said})
    if asked is None:
        return Origin("nothing: random initialisation")
    if asked == "auto":
        return _from_run(pretrained_run(job, screen))
    path = Path(asked).expanduser()
    if (path / checkpoint.MANIFEST).is_file():
        return _from_checkpoint(path, path.parent.parent)
    if (path / "checkpoints").is_dir():
        return _from_run(path)
    if not path.exists():
        raise ValueError(f"init_from={asked}: no such run directory, checkpoint or file of tensors")
    return Origin(str(path), read_tensors(path), checkpoint.sha256(path), {"file": str(path)})


def _from_run(directory: Path) -> Origin:
    """The best checkpoint of a run directory."""
    newest, _ = checkpoint.newest_valid(directory / "checkpoints")
    if newest is None:
        raise ValueError(f"init_from={directory}: this run directory holds no whole checkpoint")
    best = checkpoint.load(newest).state["best"].get("step")
    chosen = directory / "checkpoints" / f"step-{best or 0:08d}"
    return _from_checkpoint(chosen if (chosen / checkpoint.MANIFEST).is_file() else newest, directory)


def _from_checkpoint(path: Path, directory: Path) -> Origin:
    snapshot = checkpoint.load(path)
    record = read_record(directory)
    lineage = {
        "run": str(_shown_path(directory)),
        "checkpoint": path.name,
        "sha256": checkpoint.model_hash(path),
        "averaged": bool(snapshot.ema),
        "metrics": record.get("metrics"),
        "parent": record.get("lineage"),
    }
    return Origin(str(path), {**snapshot.model, **snapshot.ema}, checkpoint.model_hash(path), lineage)


def pretrained_run(job: Job, screen: Screen) -> Path:
    """The finished run that the `pretrain` node describes: found by its fingerprint, or made now, by one process."""
    config = {**job.config, **job.config["pretrain"], "stage": "pretrain", "init_from": None, "resume": "auto"}
    config["freeze"] = {construct.TARGET: "hydratune.freeze.strategies.Nothing"}
    data: Dataset = construct.construct(config["dataset"], "pretrain.dataset", job.trust)
    runtime: Runtime = construct.construct(config["runtime"], "runtime", job.trust)
    wanted = fingerprint(content(config, None, data.files(), runtime.precision))
    outputs = Path(config["outputs"])
    home = outputs / "pretrain"
    with _locked(home / f".pretrain-{wanted[:12]}.lock", screen):
        for found in sorted(outputs.glob("*/*/run.json")) + sorted(outputs.glob("sweeps/*/*/run.json")):
            known = json.loads(found.read_text())
            if known.get("fingerprint") == wanted and known.get("status") == "complete":
                screen.line(f"init_from=auto: {found.parent} is this pretraining, finished {known.get('ended', '')}")
                return found.parent
        choices = {k.removesuffix("@pretrain." + k.partition("@")[0]): v for k, v in job.choices.items()}
        for group in ("dataset", "optimizer", "schedule"):
            choices[group] = job.choices.get(f"{group}@pretrain.{group}", choices.get(group, ""))
        choices["freeze"], choices["stage"] = "none", "pretrain"
        name = f"auto-{choices.get('model', 'model')}-{choices.get('dataset', 'data')}-{wanted[:8]}"
        screen.line("init_from=auto: no finished run of this pretraining under outputs; it runs now")
        directory = home / name
        overrides = _as_overrides(config, choices)
        _record_overrides(directory, overrides)
        pretraining = Job(config, directory, choices, overrides, job.text, job.trust, sweep=job.sweep)
        return run_job(pretraining, screen).directory


def _as_overrides(config: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """A command line that gives this configuration, for the run directory's record."""
    from hydratune.command import quoted

    def leaves(node: Any, where: str) -> Iterator[str]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                if key != construct.TARGET:
                    yield from leaves(value, f"{where}.{key}")
        else:
            yield f"++{where}={_literal(node, quoted)}"

    groups = [f"{g}={choices[g]}" for g in ("model", "dataset", "optimizer", "schedule") if choices.get(g)]
    values = [v for key in ("model", "dataset", "optimizer", "schedule", "engine") for v in leaves(config[key], key)]
    plain = [f"{k}={_literal(config[k], quoted)}" for k in ("seed", "epochs", "steps", "batch_size", "outputs")]
    runtime = list(leaves(config["runtime"], "runtime"))
    return ["stage=pretrain", *groups, *plain, *values, *runtime]


def _literal(value: Any, quoted: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(_literal(v, quoted) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_literal(v, quoted)}" for k, v in value.items()) + "}"
    return quoted(value) if isinstance(value, str) else repr(value)


def _record_overrides(directory: Path, overrides: list[str]) -> None:
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    write_json(directory / ".hydra" / "overrides.yaml", overrides)  # JSON is YAML


@contextmanager
def _locked(path: Path, screen: Screen) -> Iterator[None]:
    """One process at a time; the others wait. The kernel lets go of it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            screen.line("init_from=auto: another job is running this pretraining; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
            f"{'; '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}. init_from={job.directory} starts a new run from it"
        )


# ---- what is shown


def _shown_path(path: Path) -> Path:
    """Relative to where the user is, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def _label(job: Job) -> str:
    return "  ".join(f"{g}={job.choices[g]}" for g in ("model", "dataset", "freeze", "optimizer") if job.choices.get(g))


def _show_reports(
    screen: Screen,
    run: Run,
    job: Job,
    loaded: LoadReport | None,
    network: Network,
    phases: Any,
    runtime: Runtime,
    how: str,
) -> None:
    run.board.text("config", f"```yaml\n{job.text}\n```")
    if loaded is not None:
        rows = [
            ("loaded", len(loaded.loaded), ""),
            ("skipped", len(loaded.skipped), _some(loaded.skipped)),
            ("initialised", len(loaded.initialised), ", ".join(list(loaded.initialised)[:6])),
        ]
        title = f"weights from {loaded.source}: {loaded.trunk_share:.0%} of the trunk"
        screen.table(title, ("tensors", "count", "which and why"), rows)
        every = [(n, "loaded", "") for n in loaded.loaded]
        every += [(n, "skipped", why) for n, why in loaded.skipped.items()]
        every += [(n, "initialised", why) for n, why in loaded.initialised.items()]
        run.table("load", f"**{title}**\n\n" + markdown_table(("tensor", "what became of it", "why"), every))
    rows = report.rows(network.groups, phases)
    screen.table("what trains", report.COLUMNS, rows)
    screen.line(f"computes in {runtime.chosen} on {runtime.torch_device}: {how}")
    run.table("freeze", markdown_table(report.COLUMNS, rows))


def _some(reasons: Mapping[str, str], most: int = 3) -> str:
    shown = [f"{name}: {why}" for name, why in list(reasons.items())[:most]]
    return "; ".join(shown) + (f"; and {len(reasons) - most} more (load.md)" if len(reasons) > most else "")


def _show_batch(run: Run, train_stream: Stream, spec: DataSpec) -> None:
    batch = next(train_stream.batches(0, 1))
    run.board.picture("batch", pictures.grid(pictures.visible(batch.inputs[:32], spec.mean, spec.std)), 0)


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
    _show_mistakes(run, seen, val_stream, spec, step)
    test = config["test"] if isinstance(config["test"], bool) else not job.sweep
    if test:
        tested = evaluate(trial.network, dataset.task, stream(dataset.split("test")), spec, trial.runtime).compute()
        metrics |= {f"test_{k}": v for k, v in tested.items()}
        run.board.scalars({f"test/{k}": v for k, v in tested.items()}, step)
    done = trial.num_steps if trial.stopped is None else (trial.best["step"])
    run.board.hparams(_hparams(job), {f"result/{k}": v for k, v in metrics.items()}, done)
    run.update(
        status="complete",
        ended=_now(),
        metrics=metrics,
        best_step=step,
        num_steps=trial.num_steps,
        stopped=trial.stopped,
        seconds=round(known_seconds(run) + seconds, 2),
        checkpoint={"path": f"checkpoints/{best.name}", "sha256": checkpoint.model_hash(best)},
    )
    parent = (run.record.get("lineage") or {}).get("metrics")
    rows = [[config["stage"], _label(job), *_shown(metrics, monitor), f"{step}/{trial.num_steps}", duration(seconds)]]
    if parent:
        rows.insert(0, ["pretrain", run.record["lineage"]["run"], *_shown(parent, monitor), "", ""])
    screen.table("result", ("stage", "what", f"val {monitor}", f"test {monitor}", "best step", "time"), rows)
    screen.line(f"run directory:  {_shown_path(job.directory)}")
    screen.line(f"look at it:     tensorboard --logdir {shlex.quote(str(config['outputs']))}")
    return Result(job.directory, metrics[f"val_{monitor}"], run.record)


def known_seconds(run: Run) -> float:
    return float(run.record.get("seconds") or 0.0)


def _shown(metrics: Mapping[str, float], monitor: str) -> list[str]:
    return [f"{metrics[k]:.4f}" if k in metrics else "-" for k in (f"val_{monitor}", f"test_{monitor}")]


def _show_mistakes(run: Run, seen: Any, val_stream: Stream, spec: DataSpec, step: int) -> None:
    names = spec.class_names
    per_class = seen.per_class()
    run.board.text(
        "val/per_class", markdown_table(("class", "accuracy"), [(k, f"{v:.4f}") for k, v in per_class.items()])
    )
    run.board.picture("val/confusion", pictures.confusion(seen.confusion, names), step)
    if seen.worst:
        ids = torch.tensor([row[1] for row in seen.worst], device=val_stream.device)
        captions = [f"{names[true][:22]}\ntaken for {names[said][:22]}" for _, _, true, said in seen.worst]
        images = pictures.visible(val_stream.images(ids), spec.mean, spec.std)
        run.board.picture("val/worst_mistakes", pictures.mistakes(images, captions), step)


def _hparams(job: Job) -> dict[str, Any]:
    """What was chosen and what was typed; one column each in TensorBoard's HPARAMS tab."""
    groups = ("model", "dataset", "freeze", "optimizer", "schedule")
    shown = {g: job.choices.get(g, "") for g in groups}
    shown |= {"optimizer.lr": job.config["optimizer"]["lr"], "seed": job.config["seed"]}
    shown |= {"batch_size": job.config["batch_size"]}
    for override in job.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in shown and not key.startswith(("hydra", "outputs", "name", "resume", "trust", "test", "stage")):
            shown[key] = value
    return shown


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "safetensors")
    return {"hydratune": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
