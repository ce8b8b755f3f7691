"""Two processes, on CPUs by gloo, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from hydratune.data.images.augment import Augment
from hydratune.data.images.image_stream import ImageStream
from hydratune.data.stream import Batches, Placement
from hydratune.record import checkpoint
from tests.faults.harness import (
    NET,
    PATIENCE,
    allowed,
    differences,
    kill_all,
    record,
    run,
    saved,
    scalars,
    start,
    wait_until,
)
from tests.tiny import CPU, SPEC, stream

# Without BatchNorm and dropout two processes compute what one does, but for the order of sums.
PLAIN = [*NET, "++model.norm=false", "++model.dropout=0.0", "hydra.run.dir=run", "resume=auto"]


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, in the order of their numbers."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return sorted(map(int, found))


def stop(process: subprocess.Popen[str]) -> str:
    """Its last words; nothing of it is left behind."""
    try:
        return process.communicate(timeout=PATIENCE)[0]
    finally:
        kill_all(process)


def _last(directory: Path) -> int:
    return max(saved(directory), default=0) if (directory / "checkpoints").is_dir() else 0


@pytest.mark.scenario(28)
@pytest.mark.scenario(10)
@pytest.mark.parametrize("strategy", ["replicate", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_are_one_run(tmp_path: Path, strategy: str) -> None:
    """Directory, configuration, event file; weights under the model's own names; what one process computes."""
    options = [o for o in PLAIN if not o.startswith("hydra.run.dir")]
    done = run(*options, f"runtime.strategy={strategy}", "engine.clip=1.0", cwd=tmp_path, world=2)
    assert done.returncode == 0, done.stdout + done.stderr
    (home,) = (p.parent for p in tmp_path.rglob("run.json"))
    assert len(list(tmp_path.rglob(".hydra"))) == 1 and len(list(home.glob("events.*"))) == 1
    assert len(list(tmp_path.rglob("config.yaml"))) == 1 and done.stdout.count("result") == 1
    (tmp_path / "alone").mkdir()
    alone = run(*PLAIN, "engine.clip=1.0", cwd=tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    assert not differences(tmp_path / "alone" / "run", home, exact=False)
    ours = record(home)["history"], record(tmp_path / "alone" / "run")["history"]
    assert ours[0] == ours[1]
    names = checkpoint.load(home / "checkpoints" / f"step-{saved(home)[-1]:08d}").model.keys()
    assert (
        names
        == checkpoint.load(tmp_path / "alone" / "run" / "checkpoints" / f"step-{saved(home)[-1]:08d}").model.keys()
    )
    taken = run(f"resume={home}", "trust=[faultnet]", cwd=tmp_path)  # one process takes up what two have saved
    assert taken.returncode == 0, taken.stderr


@pytest.mark.slow
@pytest.mark.scenario(29)
def test_a_signal_to_one_rank_stops_both_at_the_same_step(tmp_path: Path) -> None:
    options = [*PLAIN, "epochs=400"]
    process = start(*options, cwd=tmp_path, world=2)
    wait_until(lambda: (tmp_path / "run" / "checkpoints").is_dir() and saved(tmp_path / "run"))
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    began = time.monotonic()
    said = stop(process)
    assert process.returncode and time.monotonic() - began < allowed(30), said
    assert record(tmp_path / "run")["status"] == "interrupted", said
    assert "exitcode  : 143" in said, said
    assert not ranks_of(process)


@pytest.mark.slow
@pytest.mark.scenario(30)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_and_it_goes_on_bitwise(tmp_path: Path, victim: int) -> None:
    options = [*NET, "hydra.run.dir=run", "resume=auto", "epochs=30"]
    (tmp_path / "whole").mkdir()
    whole = run(*options, cwd=tmp_path / "whole", world=2)
    assert whole.returncode == 0, whole.stderr
    process = start(*options, cwd=tmp_path, world=2)
    wait_until(lambda: (tmp_path / "run" / "checkpoints").is_dir() and saved(tmp_path / "run"))
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    began = time.monotonic()
    said = stop(process)
    assert process.returncode and time.monotonic() - began < allowed(45), said
    again = run(*options, cwd=tmp_path, world=2)
    assert again.returncode == 0, again.stderr
    assert not differences(tmp_path / "whole" / "run", tmp_path / "run")


@pytest.mark.scenario(31)
def test_every_sample_is_one_ranks_and_counts_once() -> None:
    whole = stream(batch_size=8, n=41)
    parts = [ImageStream(whole.split, SPEC, Batches(8, 5), Placement(CPU, rank=r, world=3)) for r in range(3)]
    counted = [[b.ids.tolist() for b in p.eval_batches()] for p in parts]
    assert {len(batches) for batches in counted} == {6}  # as many turns for each, though the last has one sample
    assert sorted(i for batches in counted for ids in batches for i in ids) == list(range(41))
    for several in zip(whole.batches(0, 12), *(p.batches(0, 12) for p in parts), strict=True):
        assert torch.cat([b.ids for b in several[1:]]).equal(several[0].ids)


@pytest.mark.scenario(31)
def test_mixing_is_done_before_ranks_divide_a_batch() -> None:
    augment = Augment(mixup=0.4, flip=True)
    whole = stream(augment=augment)
    parts = [
        ImageStream(whole.split, SPEC, Batches(8, 5), Placement(CPU, rank=r, world=2), 3, augment) for r in range(2)
    ]
    for one, a, b in zip(whole.batches(3, 7), *(p.batches(3, 7) for p in parts), strict=True):
        assert torch.cat([a.inputs, b.inputs]).equal(one.inputs) and torch.cat([a.targets, b.targets]).equal(
            one.targets
        )


@pytest.mark.slow
@pytest.mark.scenario(31)
def test_an_odd_number_of_samples_neither_hangs_nor_counts_twice(tmp_path: Path) -> None:
    options = [*PLAIN, "dataset.val=61", "dataset.test=21", "batch_size=20"]
    two = run(*options, cwd=tmp_path, world=2)
    assert two.returncode == 0, two.stderr
    (tmp_path / "alone").mkdir()
    one = run(*options, cwd=tmp_path / "alone")
    assert one.returncode == 0, one.stderr
    ours, theirs = record(tmp_path / "run")["metrics"], record(tmp_path / "alone" / "run")["metrics"]
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.scenario(32)
def test_the_number_of_processes_may_change_on_the_way(tmp_path: Path) -> None:
    """Killed twice: two processes, then one, then two; the samples of each step are those of one process throughout."""
    options = [*PLAIN, "epochs=40"]
    for world in (2, 1):
        begun = _last(tmp_path / "run")
        process = start(*options, cwd=tmp_path, world=world)
        wait_until(lambda n=begun: _last(tmp_path / "run") > n + 6)
        kill_all(process)
    assert record(tmp_path / "run")["status"] == "running"
    done = run(*options, cwd=tmp_path, world=2)
    assert done.returncode == 0, done.stderr
    (tmp_path / "alone").mkdir()
    alone = run(*options, cwd=tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    ours, theirs = (scalars(d)["train/loss"] for d in (tmp_path / "run", tmp_path / "alone" / "run"))
    assert [s for s, _ in ours] == [s for s, _ in theirs]
    # another order of samples would give other losses from its first step on
    assert [v for _, v in ours[:8]] == pytest.approx([v for _, v in theirs[:8]], rel=1e-3)


@pytest.mark.slow
@pytest.mark.scenario(28)
def test_two_processes_pretrain_first_and_then_find_what_they_made(tmp_path: Path) -> None:
    small = ["stage=finetune", "model=mlp", "freeze=none", "epochs=1", "batch_size=20", "runtime.precision=fp32"]
    small += [f"{p}dataset.{k}={n}" for p in ("", "pretrain.") for k, n in (("train", 100), ("val", 50), ("test", 50))]
    for _ in range(2):
        done = run(*small, "pretrain.epochs=1", cwd=tmp_path, world=2)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "is this pretraining, finished" in done.stdout
    assert len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 1
    assert len(list(tmp_path.glob("outputs/finetune/*/run.json"))) == 2


@pytest.mark.scenario(28)
def test_a_sweep_under_torchrun_says_what_to_do_instead(tmp_path: Path) -> None:
    done = run("-m", "optimizer.lr=0.1,0.2", cwd=tmp_path, world=2)
    assert done.returncode and "a sweep under torchrun" in done.stderr and "Without torchrun" in done.stderr
    assert not list(tmp_path.iterdir())
