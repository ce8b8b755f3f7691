"""What a job needs is done once and first, and its failure is told to all that need it."""

from __future__ import annotations

import pytest

from hydratune.experiment.job_graph import JobGraph, Node, Unmet


def test_needs_are_done_first_and_once() -> None:
    done: list[str] = []
    graph: JobGraph[str] = JobGraph(lambda node: done.append(node.key) or node.key.upper())  # type: ignore[func-returns-value]
    data = Node("check", "data", None)
    pretraining = Node("pretrain", "pretraining", None, (data,))
    jobs = [Node("ready", f"job{i}", None, (data, pretraining)) for i in range(3)]
    assert [graph.have(job) for job in jobs] == ["JOB0", "JOB1", "JOB2"]
    assert done == ["data", "pretraining", "job0", "job1", "job2"]


def test_a_failure_is_told_to_all_that_need_it_and_is_not_tried_again() -> None:
    tried: list[str] = []

    def do(node: Node) -> bool:
        tried.append(node.key)
        if node.kind == "pretrain":
            raise Unmet("the disk is full")
        return True

    graph = JobGraph(do)
    pretraining = Node("pretrain", "p", None, (), "its pretraining failed: {}")
    first, second = (Node("ready", name, None, (pretraining,)) for name in "ab")
    assert graph.failure(first) == graph.failure(second) == "its pretraining failed: the disk is full"
    assert tried == ["p"] and graph.failure(Node("ready", "c", None)) is None


def test_another_kind_of_error_is_nobodys_failure_but_a_fault() -> None:
    def do(node: Node) -> bool:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        JobGraph(do).have(Node("check", "x", None))
