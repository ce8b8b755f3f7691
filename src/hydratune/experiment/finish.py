"""The end of a run: select by validation, read the test split once, export, tell the story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydratune.config.job import Job
from hydratune.core.paths import shown_path
from hydratune.data.stream import Stream
from hydratune.distributed.process_group import whole
from hydratune.engine.evaluate import evaluate, evaluate_tails
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches, Trunk, cached
from hydratune.experiment import report
from hydratune.experiment.job_group import JobGroup
from hydratune.experiment.selection import monitor_of
from hydratune.freeze import lora
from hydratune.models.network import Network
from hydratune.record import checkpoint
from hydratune.record.run import Run
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen


@dataclass(frozen=True)
class Result:
    directory: Path
    metric: float  # validation, at the best evaluation
    record: RunRecord

    @property
    def metrics(self) -> Mapping[str, float]:
        """All that is known of the run, such as val_accuracy and test_accuracy."""
        return dict(self.record.metrics or {})


def complete(job: Job, known: RunRecord, network: Network, group: JobGroup, screen: Screen) -> Result:
    """A run that was finished already. test=true reads the test split of one that had not, a sweep's winner say."""
    dataset, metrics = group.dataset, dict(known.metrics or {})
    best_step = known.best_step or 0
    monitor = monitor_of(job.config.monitor, dataset.task)
    if job.config.test is True and f"test_{monitor.metric}" not in metrics:
        # Its record stays that of a complete run until the test is through, whatever becomes of that.
        _load_best(network, job.directory / "checkpoints", best_step)
        tested = _tested(network, group, screen)
        metrics |= {f"test_{k}": v for k, v in tested.items()}
        run = Run(job.directory, None, known.num_steps or 0, group.runtime.rank > 0, status="complete")
        with run, run.shown_once(metrics=metrics):
            run.board.scalars({f"test/{k}": v for k, v in tested.items()}, best_step)
        screen.line(f"{shown_path(job.directory)}: test {monitor.metric} {metrics[f'test_{monitor.metric}']:.4f}")
    else:
        screen.line(f"{shown_path(job.directory)} is complete; nothing to do")
    return Result(job.directory, metrics[monitor.key], known.changed(metrics=metrics))


def _tested(network: Network, group: JobGroup, screen: Screen) -> dict[str, float]:
    """Metrics of the test split."""
    split = group.dataset.split("test")
    if summary := group.dataset.split_summary(split):
        screen.line(f"test: {summary}")
    return evaluate(network, group.dataset.task, group.stream(split), group.spec, group.runtime).compute()


def _load_best(network: Network, directory: Path, step: int) -> Path:
    """The best checkpoint's weights, averaged ones where there are any."""
    path = directory / f"step-{step:08d}"
    snapshot = checkpoint.load(path)
    network.load({**snapshot.model, **snapshot.ema})
    return path


def finish(
    job: Job, trial: Trial, group: JobGroup, val_stream: Stream, caches: Caches | None, screen: Screen
) -> Result:
    """Select by validation, look at the mistakes, read the test split once, and tell the story."""
    run, dataset, runtime, state = trial.run, group.dataset, trial.runtime, trial.state
    monitor, step = trial.plan.monitor, state.best["step"]
    runtime.wait_for_all()  # the checkpoint is the first one's to write
    best = _load_best(trial.network, run.checkpoints, step)
    metrics = {f"val_{k}": v for k, v in state.best["metrics"].items()}
    for name, values in state.best.get("beside", {}).items():
        metrics |= {f"{name}_{k}": v for k, v in values.items()}
    cut = trial.untouched(trial.num_steps - 1)
    trunk = Trunk(trial.network, [cut], runtime, val_stream)
    if caches is not None and cut == trial.phases[-1].cut and trial.planned[-1] in caches.phases:
        trunk = cached(trunk, [cut], caches.store, caches.val)
    (seen,) = evaluate_tails([trial.network], [cut], dataset.task, trunk, group.spec, runtime)
    seen.compute()
    tested: dict[str, float] = {}
    if job.reads_test:
        tested = _tested(trial.network, group, screen)
        metrics |= {f"test_{k}": v for k, v in tested.items()}
    export(run, trial.network, group)
    shown = {f"val_{t}" if isinstance(what, Mapping) else f"val/{t}": what for t, what in seen.show(val_stream).items()}
    ended = {
        "status": "complete",
        "ended": report.now(),
        "metrics": metrics,
        "best_step": step,
        "num_steps": trial.num_steps,
        "stopped": state.stopped,
        "seconds": run.seconds,
        "checkpoint": {"path": f"checkpoints/{best.name}", "sha256": checkpoint.model_hash(best)},
    }
    with run.shown_once(**ended):
        run.show(shown, step)
        run.board.scalars({f"test/{k}": v for k, v in tested.items()}, step)
        results = {
            f"result/{k}": metrics[k] for k in sorted(metrics, key=lambda k: k != monitor.key)
        }  # what selects first
        run.board.hparams(report.hparams(job), results, trial.num_steps, report.prominent(job))
    if state.stopped is not None:
        screen.line(f"stopped after {state.history[-1][0]} of {trial.num_steps} steps: {state.stopped}")
    report.show_result(screen, run, job, metrics, monitor.metric, f"{step}/{trial.num_steps}", seen.warnings())
    return Result(job.directory, metrics[monitor.key], run.record)


def paused(job: Job, run: Run, trial: Trial) -> Result:
    """A run that a sweep halted on its way; it can go on from its checkpoint."""
    run.update(status="paused", seconds=run.seconds)
    return Result(job.directory, trial.state.history[-1][1], run.record)


def export(run: Run, network: Network, group: JobGroup) -> None:
    """The model as its library reads it; low-rank updates alone in PEFT's layout, and the weights that they give."""
    tensors = {n: whole(t.detach()) for n, t in network.state_dict().items()}
    if run.silent:
        return
    plain = {n: t.detach().cpu().contiguous() for n, t in lora.merged(tensors).items()}
    if group.body.export is not None:
        group.dataset.keep(run.directory / "export", export=True)
        group.body.export(run.directory / "export", plain)
    if any(lora.is_adapter(name) for name in tensors):
        from safetensors.torch import save_file

        heads = sorted({name.rpartition(".")[0] for name in network.own_of_head()})
        lora.save_adapter(run.directory / "adapter", tensors, heads)
        save_file(plain, run.directory / "merged.safetensors")
