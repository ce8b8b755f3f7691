"""freeze.first=auto: the group with the largest relative gradient trains, chosen once and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hydratune.engine.gradients import BATCHES, relative_gradient_norms
from hydratune.experiment import job_group
from hydratune.experiment.run import run_jobs
from hydratune.freeze.report import ranking
from hydratune.freeze.strategies import Surgical
from hydratune.record import checkpoint
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen
from hydratune.tasks.classification import Classification
from tests.conftest import TINY, make_job
from tests.test_lisa import deep
from tests.tiny import network, same, stream, weights

AUTO = ["stage=finetune", "model=resnet9_w16", "init_from=null", "freeze=surgical", "freeze.first=auto", "test=false"]


def norms_of(net: Any, parts: int = 1) -> Mapping[str, float]:
    from hydratune.distributed.runtime import Runtime

    runtime = Runtime(precision="fp32", keep_memory=False)
    return relative_gradient_norms(net, Classification(), stream(), runtime, 7, parts)


def test_norms_are_by_definition_and_leave_the_network_alone() -> None:
    net, other = network(), network()
    for group in net.groups:
        group.module.eval()
    before = weights(net)
    found = norms_of(net)
    assert same(before, weights(net)) and not any(g.module.training for g in net.groups)
    assert all(p.grad is None for p in net.parameters().values())
    for group in other.groups:
        group.module.train()
    counted = {"stem": ["stem.weight"], "middle": ["middle.weight", "middle.bias"]}  # not what norms have
    sums = dict.fromkeys(counted, 0.0)
    for batch in stream().batches(0, BATCHES):
        loss = nn.functional.cross_entropy(other.forward(batch.inputs), batch.targets)
        own = other.parameters()
        for name, names in counted.items():
            slopes = torch.autograd.grad(loss, [own[n] for n in names], retain_graph=True)
            total = [float(sum(t.detach().square().sum() for t in ts)) for ts in (slopes, [own[n] for n in names])]
            sums[name] += (total[0] / total[1]) ** 0.5 / BATCHES
    assert found == pytest.approx(sums, rel=1e-5) and "head" not in found


def test_norms_are_the_same_in_micro_batches_and_every_time() -> None:
    net = deep()
    assert norms_of(net) == norms_of(net)
    assert norms_of(net, parts=2) == pytest.approx(norms_of(net), rel=1e-4)
    assert "flat" not in norms_of(net)  # it has nothing that could train


def test_the_largest_trains() -> None:
    net = network()
    strategy = Surgical("auto")
    assert strategy.undecided and not Surgical("stem").undecided
    (chosen,) = strategy.decided({"stem": 0.1, "middle": 0.2}).phases(net.groups, 9)
    assert chosen == Surgical("middle").phases(net.groups, 9)[0] and chosen.name == "middle and head"
    (provisional,) = strategy.phases(net.groups, 9)
    assert provisional.cut == 0 and provisional.trainable == net.parameters().keys()
    assert ranking({"stem": 0.1, "middle": 0.2}) == [("middle", "0.2", "1"), ("stem", "0.1", "2")]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"freeze\.last=2: freeze\.first=auto chooses one group"):
        Surgical("auto", 2)
    with pytest.raises(ValueError, match=r"freeze\.first=atuo: no such group.*or auto"):
        Surgical("atuo").phases(network().groups, 5)
    net = network()
    with torch.no_grad():
        net.parameters()["stem.weight"].fill_(float("nan"))
    with pytest.raises(ValueError, match=r"freeze\.first=auto: the gradient of stem is not finite"):
        norms_of(net)


def test_a_run_shows_and_remembers_its_choice_and_goes_on_with_it(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["optimizer.lr=0.1", "engine.eval_every=4"]
    whole = run(*AUTO, *more, "steps=8", directory=tmp_path / "whole")
    record = RunRecord.read(whole.directory)
    norms = dict(record.gradient_norms or {})
    best = max(norms, key=lambda name: norms[name])
    assert set(norms) == {"stem", "layer1", "layer2", "layer3"}
    said, kept = capfd.readouterr().out, (whole.directory / "freeze.md").read_text()
    for text in (said, kept):
        assert f"{best} and head" in text and f"{norms[best]:.4g}" in text
    run(*AUTO, *more, "steps=4", directory=tmp_path / "half")
    # Were it asked again, the half-trained network would say something else.
    monkeypatch.setattr(job_group, "relative_gradient_norms", lambda *_: pytest.fail("asked again"))
    half = run(*AUTO, *more, "steps=8", "resume=auto", directory=tmp_path / "half")
    ends = [checkpoint.load(done.directory / "checkpoints" / "step-00000008") for done in (whole, half)]
    assert same(*(dict(end.model) for end in ends)) and RunRecord.read(half.directory).gradient_norms == norms


def test_jobs_of_a_sweep_ask_once_and_are_what_they_are_alone(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[str, float]] = []

    def counted(*arguments: Any) -> Mapping[str, float]:
        asked.append(relative_gradient_norms(*arguments))
        return asked[-1]

    monkeypatch.setattr(job_group, "relative_gradient_norms", counted)
    lines = [*TINY, *AUTO, "steps=3", "engine.eval_every=3"]
    rates = ("0.1", "0.02")
    jobs = [make_job([*lines, f"optimizer.lr={rate}"], tmp_path / rate, sweep=True) for rate in rates]
    jobs.append(make_job([*lines[:-1], "engine.eval_every=3", "freeze=head_only"], tmp_path / "head", sweep=True))
    for job, outcome in run_jobs(jobs, Screen(quiet=True), lambda _: Screen(quiet=True)):
        assert not isinstance(outcome, Exception), (job.directory, outcome)
    assert len(asked) == 1
    alone = run(*AUTO, "steps=3", "engine.eval_every=3", "optimizer.lr=0.02", directory=tmp_path / "alone")
    ends = [checkpoint.load(home / "checkpoints/step-00000003") for home in (alone.directory, jobs[1].directory)]
    assert same(*(dict(end.model) for end in ends))
    assert json.loads((jobs[0].directory / "run.json").read_text())["gradient_norms"] == asked[0]
    assert RunRecord.read(jobs[2].directory).gradient_norms is None


def test_one_that_cannot_choose_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Mapping[str, float]:
        raise ValueError("not finite")

    monkeypatch.setattr(job_group, "relative_gradient_norms", failing)
    lines = [*TINY, *AUTO, "steps=2", "engine.eval_every=2"]
    jobs = [make_job(lines, tmp_path / "auto", sweep=True)]
    jobs.append(make_job([*lines, "freeze=head_only", "~freeze.first"], tmp_path / "head", sweep=True))
    outcomes = {j.directory: o for j, o in run_jobs(jobs, Screen(quiet=True), lambda _: Screen(quiet=True))}
    assert isinstance(outcomes[jobs[0].directory], ValueError)
    assert not isinstance(outcomes[jobs[1].directory], Exception)


def test_a_dry_run_says_that_it_is_not_decided_yet(run: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    run(*AUTO, "steps=2", "dry_run=true")
    assert "one group, by its gradient, and head" in " ".join(capfd.readouterr().out.split())
