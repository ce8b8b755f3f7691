"""stage=evaluate: all metrics of a trained network on every split of a data set; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from hydratune.config.job import Job
from hydratune.core.markdown import markdown_table
from hydratune.core.types import Batch, Metrics
from hydratune.data.stream import Stream
from hydratune.distributed import signals
from hydratune.engine.evaluate import evaluate
from hydratune.experiment import report, searching
from hydratune.experiment.finish import Result
from hydratune.experiment.other_data import as_asked, like
from hydratune.experiment.trained import Trained, trained
from hydratune.experiment.usage import opened, show_used
from hydratune.record.run import Run
from hydratune.record.screen import LiveLine, Screen


@dataclass(frozen=True)
class Part:
    """A split that is evaluated. source: the data set that its samples are shown by."""

    name: str
    split: Any
    source: Any


def evaluate_job(job: Job, screen: Screen) -> Result:
    """Raises ValueError where the data asks for what the network does not answer."""
    with trained(job) as used, ExitStack() as stack:
        parts = parts_of(used)
        if not parts:
            raise ValueError(
                "dataset: holds nothing that could be evaluated; another dataset= does, or an evaluation set"
            )
        run = stack.enter_context(opened(job, used))
        show_used(screen, run, used)
        metrics: dict[str, float] = {}
        for part in parts:
            if summary := part.source.split_summary(part.split):
                screen.line(f"{part.name}: {summary}")
        total = sum(len(part.split) for part in parts)
        with screen.progress("evaluate", 0, total) as line, signals.held():
            seen = 0
            for part in parts:
                found, stream = _evaluated(used, part, line, seen)
                values = found.compute()
                seen += len(part.split)
                metrics |= {f"{part.name}_{k}": v for k, v in values.items()}
                line.milestone(seen, {f"{part.name} {used.task.monitor}": f"{values[used.task.monitor]:.4f}"})
                run.board.scalars({f"{part.name}/{k}": v for k, v in values.items()}, used.step)
                run.show({f"{part.name}/{tag}": what for tag, what in found.show(stream).items()}, used.step)
        for part in parts if used.task.kind == searching.KIND else ():
            metrics |= _searched(used, part, run, screen)
        ended = {"status": "complete", "ended": report.now(), "metrics": metrics, "seconds": run.seconds}
        run.update(**ended, monitor=used.task.monitor)
        _show_metrics(screen, metrics, [part.name for part in parts], used.task.monitor)
        screen.line(f"run directory:  {report.shown_path(job.directory)}")
        scores = [metrics.get(f"{name}_{used.task.monitor}") for name in ("test", *(part.name for part in parts))]
        return Result(job.directory, next(v for v in scores if v is not None), run.record)


def parts_of(used: Trained) -> list[Part]:
    """The splits of the run's own data as it trained on them; other data as it lies there; and the evaluation sets."""
    job, spec, task = used.job, used.spec, used.task
    found: list[Part] = []
    dataset = used.dataset
    if used.own_data():
        splits = {name: dataset.split(name) for name in dataset.split_names()}
    else:
        splits = dict(dataset.evaluated_parts())
    for name, split in splits.items():
        dataset.check_evaluated(split, f"dataset: the {name} split")
        found.append(Part(name, as_asked(dataset, split, task, spec, "dataset"), used.shower(dataset)))
    for name, node in job.config.evals.items():
        where = f"evals.{name}"
        dataset = like(spec, node, where, job)
        split = as_asked(dataset, dataset.evaluated_split(), task, spec, where)
        dataset.check_evaluated(split, f"{where}:")
        found.append(Part(name, split, used.shower(dataset)))
    return found


def _evaluated(used: Trained, part: Part, line: LiveLine, before: int) -> tuple[Metrics, Stream]:
    """Metrics over the part, and the stream that shows its samples. Raises Stopped where a signal asks for it."""
    stream = used.maker.stream(part.split, used.body, used.batches, used.place)
    counted = _Counted(stream, line, before)
    return evaluate(used.network, used.task, counted, used.spec, used.runtime), stream  # type: ignore[arg-type]


def _searched(used: Trained, part: Part, run: Run, screen: Screen) -> dict[str, float]:
    """Wrong moves with a search, shown by kind of position."""
    with signals.held():
        found = searching.searched(used, part.split, screen, part.name)
    if found is None:
        return {}
    columns, rows = searching.table(found)
    screen.table(f"wrong moves, {part.name}", columns, rows)
    run.table(f"wrong_moves_{part.name}", markdown_table(columns, rows))
    values = {f"wrong_moves_{n}": found.mean(n) for n in found.wrong}
    run.board.scalars({f"{part.name}/{k}": v for k, v in values.items()}, used.step)
    return {f"{part.name}_{k}": v for k, v in values.items()}


class _Counted:
    """A stream that tells the live line how far it is."""

    def __init__(self, stream: Stream, line: LiveLine, before: int) -> None:
        self._stream, self._line, self._seen = stream, line, before

    def eval_batches(self) -> Iterator[Batch]:
        for batch in self._stream.eval_batches():
            yield batch
            self._seen += len(batch.ids)
            self._line.show(self._seen, {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _show_metrics(screen: Screen, metrics: Mapping[str, float], sets: list[str], monitor: str) -> None:
    names = list(dict.fromkeys(k.removeprefix(f"{s}_") for s in sets for k in metrics if k.startswith(f"{s}_")))
    names.sort(key=lambda name: name != monitor)
    screen.table("metrics", ("metric", *sets), [[name, *report.shown(metrics, name, sets)] for name in names])
