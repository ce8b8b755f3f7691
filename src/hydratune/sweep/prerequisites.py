"""The nodes of a sweep's job graph: what must be so before its jobs run, and what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydratune.config.job import Job
from hydratune.experiment.job_graph import Node
from hydratune.sweep.plan import Entry
from hydratune.sweep.ranking import Ranking
from hydratune.sweep.settings import SweepSettings

GENERATED = ("hydratune.data.Shapes",)  # there is nothing to be wrong with


def ready(entry: Entry) -> Node:
    """That the job can run: its data can be used, its pretraining is there. Nothing is done for this itself."""
    assert entry.job is not None
    config, needs = entry.job.config, []
    generated = config.dataset_target in GENERATED and not config.evals
    if not generated and config.test is not False:
        # The test split is read last of all, and that is too late to find out that it cannot be.
        needs.append(Node("check", config.data_key(), [entry]))
    if (key := config.pretraining_key()) is not None:
        needs.append(Node("pretrain", key, [entry], tuple(needs), "its pretraining failed: {}"))
    return Node("ready", str(entry.number), [entry], tuple(needs))


def after_all(ranked: Ranking, entries: Sequence[Entry], settings: SweepSettings, directory: Path) -> list[Node]:
    """The test of the best job; the average of those that began alike; what lies between its start and its end."""
    best = ranked.winner.directory if ranked.winner is not None else None
    winner = next((e for e in entries if e.directory == best and e.same_as is None), None)
    if winner is None or winner.job is None:
        return []
    nodes = []
    if winner.job.config.test is not False:
        nodes.append(_tested(winner, winner.job))
    if settings.soup != "none":
        nodes.append(_averaged(ranked, entries, winner, settings.soup, directory))
    if settings.interpolate:
        how = ",".join(f"{share:g}" for share in settings.interpolate)
        failure = "sweep.interpolate failed: {}"
        nodes.append(Node(f"interpolate:{how}:{directory}", winner.name, [winner], (), failure))
    return nodes


def _tested(winner: Entry, job: Job) -> Node:
    """Its training stays complete if that fails."""
    entry = replace(winner, job=replace(job.with_config(test=True, resume="auto"), halt=None))
    failure = f"the test of the best job, {winner.name}, failed: {{}}"
    return Node("test", str(winner.directory), [entry], (), failure)


def _averaged(ranked: Ranking, entries: Sequence[Entry], winner: Entry, how: str, directory: Path) -> Node:
    """Of complete jobs, the best of them first."""
    from hydratune.sweep.soup import start_of

    by_directory = {e.directory: e for e in entries if e.same_as is None and e.job is not None}
    rows = [r for r in ranked.rows if r.status == "complete" and r.directory in by_directory]
    start = start_of(winner.directory)
    alike = sorted((r for r in rows if start_of(r.directory) == start), key=lambda r: -r.value)
    chosen = [by_directory[r.directory] for r in alike]
    key = f"{how}:{','.join(e.name for e in chosen)}"
    return Node(f"soup:{how}:{directory / f'soup-{how}'}", key, chosen, (), f"sweep.soup={how} failed: {{}}")


def made_by(node: Node) -> list[str]:
    """The directories of the rows that a soup or an interpolation adds."""
    kind, how, _ = node.kind.split(":", 2)
    return [f"soup-{how}"] if kind == "soup" else [f"interpolated-{share}" for share in how.split(",")]


def strategy_of(name: str) -> str:
    """What such a row is called among the strategies."""
    return name.partition("-")[0]
