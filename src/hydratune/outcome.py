"""The end of a run: select by validation, read the test split once, export, tell the story."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune import story
from hydratune.assemble import Job
from hydratune.company import whole
from hydratune.data.dataset import Dataset
from hydratune.data.stream import Stream
from hydratune.engine.evaluate import evaluate, evaluate_tails
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, Trunk, cached
from hydratune.freeze import lora
from hydratune.models.network import Network
from hydratune.record import checkpoint
from hydratune.record.progress import Screen
from hydratune.record.run import Run
from hydratune.runtime import Runtime
from hydratune.types import Body, Spec


@dataclass(frozen=True)
class Result:
    directory: Path
    metric: float  # validation, at the best evaluation
    record: Mapping[str, Any]


def complete(
    job: Job, known: Mapping[str, Any], network: Network, body: Body, dataset: Dataset, spec: Spec, runtime: Runtime,
    stream: Callable[[Any], Stream], screen: Screen,
) -> Result:  # fmt: skip
    """A run that was finished already. test=true reads the test split of one that had not, a sweep's winner say."""
    metrics, monitor = dict(known["metrics"]), dataset.task.monitor
    if job.config["test"] is True and f"test_{monitor}" not in metrics:
        # Its record stays that of a complete run until the test is through, whatever becomes of that.
        _load_best(network, job.directory / "checkpoints", known["best_step"])
        tested = evaluate(network, dataset.task, stream(dataset.split("test")), spec, runtime).compute()
        metrics |= {f"test_{k}": v for k, v in tested.items()}
        run = Run(job.directory, {}, known["num_steps"], runtime.rank > 0, status="complete")
        with run, run.told_once(metrics=metrics):
            run.board.scalars({f"test/{k}": v for k, v in tested.items()}, known["best_step"])
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


def finish(
    job: Job, run: Run, trial: Trial, body: Body, dataset: Dataset, stream: Callable[[Any], Stream],
    val_stream: Stream, caches: Caches | None, screen: Screen,
) -> Result:  # fmt: skip
    """Select by validation, look at the mistakes, read the test split once, and tell the story."""
    monitor, spec, runtime = dataset.task.monitor, trial.spec, trial.runtime
    step = trial.best["step"]
    runtime.wait_for_all()  # the checkpoint is the first one's to write
    best = _load_best(trial.network, run.checkpoints, step)
    metrics = {f"val_{k}": v for k, v in trial.best["metrics"].items()}
    cut = trial.untouched(trial.num_steps - 1)
    trunk = Trunk(trial.network, [cut], runtime, val_stream)
    if caches is not None and cut == trial.phases[-1].cut and trial.phases[-1] in caches.phases:
        trunk = cached(trunk, [cut], caches.store, caches.val)
    (seen,) = evaluate_tails([trial.network], [cut], dataset.task, trunk, spec, runtime)
    seen.compute()
    tested: dict[str, float] = {}
    if job.reads_test:
        split = dataset.split("test")
        if said := dataset.remark(split):
            screen.line(f"test: {said}")
        tested = evaluate(trial.network, dataset.task, stream(split), spec, runtime).compute()
        metrics |= {f"test_{k}": v for k, v in tested.items()}
    exported(run, trial.network, body, dataset)
    shown = {f"val_{t}" if isinstance(what, Mapping) else f"val/{t}": what for t, what in seen.show(val_stream).items()}
    ended = {
        "status": "complete",
        "ended": story.now(),
        "metrics": metrics,
        "best_step": step,
        "num_steps": trial.num_steps,
        "stopped": trial.stopped,
        "seconds": run.seconds,
        "checkpoint": {"path": f"checkpoints/{best.name}", "sha256": checkpoint.model_hash(best)},
    }
    with run.told_once(**ended):
        run.show(shown, step)
        run.board.scalars({f"test/{k}": v for k, v in tested.items()}, step)
        run.board.hparams(story.hparams(job), {f"result/{k}": v for k, v in metrics.items()}, trial.num_steps)
    if trial.stopped is not None:
        screen.line(f"stopped after {trial.history[-1][0]} of {trial.num_steps} steps: {trial.stopped}")
    story.show_result(screen, run, job, metrics, monitor, f"{step}/{trial.num_steps}")
    return Result(job.directory, metrics[f"val_{monitor}"], run.record)


def paused(job: Job, run: Run, trial: Trial) -> Result:
    """A run that a sweep halted on its way; it can go on from its checkpoint."""
    run.update(status="paused", seconds=run.seconds)
    return Result(job.directory, trial.last[trial.task.monitor], run.record)


def exported(run: Run, network: Network, body: Body, dataset: Dataset) -> None:
    """The model as its library reads it; low-rank updates alone in PEFT's layout, and the weights that they give."""
    tensors = {n: whole(t.detach()) for n, t in network.state_dict().items()}
    if run.silent:
        return
    plain = {n: t.detach().cpu().contiguous() for n, t in lora.merged(tensors).items()}
    if body.export is not None:
        dataset.keep(run.directory / "export", export=True)
        body.export(run.directory / "export", plain)
    if any(lora.is_adapter(name) for name in tensors):
        from safetensors.torch import save_file

        heads = sorted({name.rpartition(".")[0] for name in network.own_of_head()})
        lora.save_adapter(run.directory / "adapter", tensors, heads)
        save_file(plain, run.directory / "merged.safetensors")
