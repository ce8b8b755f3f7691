"""The nodes of a sweep's job graph: what must be so before its jobs run, and what follows them."""

from __future__ import annotations

from pathlib import Path

from hydratune.experiment.job_graph import Node
from hydratune.sweep.plan import Entry

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


def tested(winner: Entry) -> Node:
    """The test split of the best job, once."""
    failure = f"the test of the best job, {winner.name}, failed: {{}}"
    return Node("test", str(winner.directory), [winner], (), failure)


def averaged(how: str, home: Path, entries: list[Entry]) -> Node:
    """A soup of complete jobs, the best of them first."""
    key = f"{how}:{','.join(e.name for e in entries)}"
    return Node(f"soup:{how}:{home}", key, entries, (), f"sweep.soup={how} failed: {{}}")
