"""Jobs of freeze=lora side by side: one frozen base for all, one trunk where all updates begin above it, own bits."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from hydratune.config.job import Job
from hydratune.experiment import run as running
from hydratune.freeze.lora import A, is_adapter
from hydratune.record import checkpoint
from hydratune.record.screen import Screen
from tests.conftest import TINY, make_job
from tests.tiny import same

LINE = [*TINY, "stage=finetune", "init_from=null", "model=resnet9_w16", "freeze=lora", "steps=6"]
RATES = (0.01, 0.03, 0.1)


def jobs(home: Path, *more: str, each: Sequence[Sequence[str]] = ()) -> list[Job]:
    lines = each or [[f"optimizer.lr={rate}"] for rate in RATES]
    made = [make_job([*LINE, *more, *line], home / str(i), sweep=True) for i, line in enumerate(lines)]
    # side by side only with what a sweep's jobs have in common
    return [replace(job.with_config(outputs="outputs"), directory=home / f"run{i}") for i, job in enumerate(made)]


def train(together: Sequence[Job]) -> None:
    screen = Screen(quiet=True)
    for _, outcome in running.run_jobs(list(together), screen, lambda job: screen):
        assert not isinstance(outcome, Exception), outcome


def counted(tensors: Iterable[Tensor]) -> int:
    """Bytes, a storage that several have being counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The trials as they begin to train, and the parameters that are alive then."""
    found: dict[str, Any] = {}
    advance = running.advance

    def watching(trials: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        gc.collect()
        found["trials"] = list(trials)
        found["alive"] = [o for o in gc.get_objects() if type(o) is nn.Parameter]
        return advance(trials, *args, **kwargs)

    monkeypatch.setattr(running, "advance", watching)
    return found


def base_of(trial: Any) -> dict[str, Tensor]:
    """What its strategy never trains."""
    ever = frozenset().union(*(p.trainable for p in trial.phases))
    return {n: p for n, p in trial.network.parameters().items() if n not in ever}


def test_the_frozen_base_is_held_once(tmp_path: Path, seen: dict[str, Any]) -> None:
    """Three jobs and the network that they were copied from have two of it; before, seven were alive."""
    before = {id(o) for o in gc.get_objects() if type(o) is nn.Parameter}
    train(jobs(tmp_path, each=[["optimizer.lr=0.01"], ["freeze.rank=4"], ["freeze.rank=2", "freeze.alpha=4"]]))
    trials = seen["trials"]
    bases = [base_of(t) for t in trials]
    one = counted(bases[0].values())
    assert counted(p for base in bases for p in base.values()) == one > 100_000
    sizes = {p.untyped_storage().nbytes() for p in bases[0].values() if p.ndim == 4}
    alive = [p for p in seen["alive"] if id(p) not in before and p.untyped_storage().nbytes() in sizes and p.ndim == 4]
    own = [p for t in trials for n, p in t.network.parameters().items() if is_adapter(n)]
    ids = {id(p) for p in own}
    assert counted(p for p in alive if id(p) not in ids) <= 2 * one
    assert counted(own) == sum(p.nbytes for p in own)  # updates are each one's own


def test_nothing_that_trains_is_shared(tmp_path: Path, seen: dict[str, Any]) -> None:
    """Of jobs that train all, the head alone, and updates, each has the tensors that it trains to itself."""
    train(jobs(tmp_path, each=[["freeze=none"], ["freeze=head_only"], [], ["freeze.norm=affine"]]))
    trained: list[int] = []
    for trial in seen["trials"]:
        ever = frozenset().union(*(p.trainable for p in trial.phases))
        trained += [id(p) for n, p in trial.network.parameters().items() if n in ever]
    assert len(trained) == len(set(trained))
    others = {id(p) for t in seen["trials"] for p in base_of(t).values()}
    assert not others.intersection(trained)


@pytest.mark.parametrize("high", [False, True])
def test_each_has_the_bits_that_it_has_alone(tmp_path: Path, high: bool) -> None:
    more = [f"freeze.targets=[{last_layer(tmp_path)}]"] if high else []
    train(jobs(tmp_path / "together", *more))
    for job in jobs(tmp_path / "alone", *more):
        train([job])
        ours, alone = (
            checkpoint.load(checkpoint.newest_valid(d / "checkpoints")[0])  # type: ignore[arg-type]
            for d in (tmp_path / "together" / job.directory.name, job.directory)
        )
        assert same(dict(ours.model), dict(alone.model)), job.directory


def last_layer(home: Path) -> str:
    """The convolution that runs last."""
    from hydratune.experiment.job_group import gather

    _, _, (prepared,), _ = gather(jobs(home / "measured")[:1])
    return [name for name in prepared.network.parameters() if name.endswith(A)][-1].removesuffix(A)


def test_updates_that_begin_high_leave_one_trunk_below_them(tmp_path: Path, seen: dict[str, Any]) -> None:
    target = last_layer(tmp_path)
    train(jobs(tmp_path, f"freeze.targets=[{target}]"))
    trials = seen["trials"]
    cuts = {p.cut for t in trials for p in t.phases}
    assert len(cuts) == 1 and min(cuts) > 0
    (cut,) = cuts
    for first, *others in zip(*(t.network.groups[:cut] for t in trials), strict=True):
        assert all(other.module is first.module for other in others)
