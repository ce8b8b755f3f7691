"""Disks that are full, files that are damaged, processes that end while they write."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hydratune.record import checkpoint
from hydratune.record.checkpoint import NotSaved, Snapshot
from tests.faults.harness import NET, differences, environment, record, run, saved, scalars


def snapshot(step: int) -> Snapshot:
    g = torch.Generator().manual_seed(step)
    tensors = {"w": torch.randn(40, 30, generator=g), "b": torch.randn(7, generator=g)}
    return Snapshot(tensors, {"w|exp_avg": torch.randn(40, 30, generator=g)}, tensors, {"step": step}, tensors)


class Faults:
    """Counts what a save asks of the disk, and lets the n-th of it fail; a write that fails leaves half a file."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.fails_at, self.failed = 0, -1, ""
        real_save, real_text = safetensors.torch.save_file, Path.write_text
        real = {name: getattr(os, name) for name in ("fsync", "rename")}

        def save_file(tensors: Any, path: Path, **more: Any) -> None:
            real_save(tensors, path, **more)
            if self.now("write"):
                os.truncate(path, path.stat().st_size // 2)
                raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")

        def write_text(path: Path, text: str, *more: Any, **options: Any) -> int:
            if self.now("write"):
                real_text(path, text[: len(text) // 2])
                raise OSError(28, "No space left on device")
            return real_text(path, text, *more, **options)

        def failing(name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if self.now(name):
                    raise OSError(5, "Input/output error")
                return real[name](*arguments, **options)

            return call

        patch.setattr(safetensors.torch, "save_file", save_file)
        patch.setattr(Path, "write_text", write_text)
        for name in real:
            patch.setattr(os, name, failing(name))

    def now(self, what: str) -> bool:
        self.count += 1
        self.failed = what if self.count == self.fails_at else self.failed
        return self.count == self.fails_at


@pytest.mark.scenario(19)
def test_a_thousand_saves_that_fail_never_leave_a_part_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write, fsync and rename of a save fails once, over and over; half of the saves replace another."""
    faults, chance = Faults(monkeypatch), random.Random(0)
    failures: Counter[str] = Counter()
    good = step = 1
    checkpoint.save(tmp_path, good, snapshot(good))
    at = 0
    for _ in range(1000):
        step += chance.random() < 0.5
        at += 1
        faults.count, faults.fails_at, faults.failed = 0, at, ""
        try:
            checkpoint.save(tmp_path, step, snapshot(step))
            whole = True
        except NotSaved as error:
            whole = False
            assert f"step-{good:08d}, is whole" in str(error) or f"step-{step:08d}, is whole" in str(error)
        failures[faults.failed] += 1
        if not faults.failed:
            at = 0  # every call of a save has failed once: from the first one again
        faults.fails_at = -1
        for path in tmp_path.iterdir():
            assert path.name.startswith("step-"), f"{path.name} was left behind"
            checkpoint.verify(path)  # whatever can be seen is whole
        newest, complaints = checkpoint.newest_valid(tmp_path)
        assert newest is not None and not complaints
        seen = checkpoint.load(newest).state["step"]
        assert seen in (good, step) and (not whole or seen == step)
        good = seen
        checkpoint.prune(tmp_path, {good})
    assert all(failures[name] > 20 for name in ("write", "fsync", "rename")), failures


@pytest.mark.scenario(19)
def test_a_run_on_a_full_disk_ends_with_a_sentence(tmp_path: Path) -> None:
    """The limit on a file's size is the kernel's: what goes beyond it fails as on a full disk."""
    options = ["model=mlp", *(o for o in NET if not o.startswith(("trust", "model")))]
    first = run(*options, "epochs=1", "hydra.run.dir=run", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); from hydratune.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "hydra.run.dir=full"], cwd=tmp_path, capture_output=True, text=True,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 2 and "no checkpoint of step" in done.stderr, done.stderr
    assert "File too large" in done.stderr and "there is none before it" in done.stderr
    assert not list((tmp_path / "full" / "checkpoints").iterdir()) and record(tmp_path / "full")["status"] == "failed"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    done = run(*NET, "hydra.run.dir=run", "engine.keep=3", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "run"


@pytest.mark.scenario(20)
@pytest.mark.scenario(23)
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, finished: Path, damage: str) -> None:
    """The run ends where it would have, and TensorBoard has one value per tag and step."""
    home = tmp_path / "run"
    options = [*NET, "hydra.run.dir=run", "engine.keep=3", "resume=auto"]
    stopped = run(*options, cwd=tmp_path, FAULT="evaluation:SIGTERM")
    assert stopped.returncode == 143 and len(saved(home)) >= 3, stopped.stderr
    last = home / "checkpoints" / f"step-{saved(home)[-1]:08d}" / "model.safetensors"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "flip" else content[:100])
    again = run(*options, cwd=tmp_path, FAULT="evaluation:SIGTERM")
    assert again.returncode == 0, again.stderr
    assert "is not what its manifest says" in again.stdout and "the one before it is used" in again.stdout
    assert not differences(finished, home)
    for tag, values in scalars(home).items():
        steps = [s for s, _ in values]
        assert len(steps) == len(set(steps)), tag


@pytest.mark.scenario(21)
def test_there_is_a_valid_one_whenever_pruning_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any removal of a file, after the new one is published."""
    real = os.unlink
    for allowed in range(12):
        home = tmp_path / str(allowed)
        for step in (1, 2):
            checkpoint.save(home, step, snapshot(step))
        checkpoint.save(home, 3, snapshot(3))
        count = 0

        def unlink(*arguments: Any, n: int = allowed, **options: Any) -> None:
            nonlocal count
            count += 1
            if count > n:
                raise KeyboardInterrupt  # whatever is left of the removal is not done
            real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink)
            with contextlib.suppress(KeyboardInterrupt):
                checkpoint.prune(home, {3})
        newest, _ = checkpoint.newest_valid(home)
        assert newest is not None and newest.name == "step-00000003"
        checkpoint.save(home, 4, snapshot(4))
        checkpoint.prune(home, {4})
        assert [p.name for p in home.iterdir()] == ["step-00000004"]  # what was half removed is gone too


@pytest.mark.scenario(21)
def test_one_that_was_to_be_replaced_is_found_where_the_process_ended_between(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, snapshot(7))
    os.rename(path, path.with_name(f"{path.name}{checkpoint.REPLACED}"))
    assert checkpoint.steps(tmp_path) == [7]
    newest, _ = checkpoint.newest_valid(tmp_path)
    assert newest is not None and checkpoint.load(newest).state["step"] == 7
    checkpoint.save(tmp_path, 8, snapshot(8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]


@pytest.mark.scenario(22)
def test_retention_counts_numbers_not_names_and_spares_what_is_held(tmp_path: Path) -> None:
    for step in (9900, 9999, 10000, 10001):
        checkpoint.save(tmp_path, step, snapshot(step % 7))
    held = checkpoint.hold(tmp_path / "step-00009900")
    checkpoint.prune(tmp_path, {9999}, newest=2)
    assert checkpoint.steps(tmp_path) == [9900, 9999, 10000, 10001]
    checkpoint.prune(tmp_path, {10001}, newest=1)
    assert checkpoint.steps(tmp_path) == [9900, 10001]
    os.close(held)
    checkpoint.prune(tmp_path, {10001})
    assert checkpoint.steps(tmp_path) == [10001]


@pytest.mark.scenario(22)
def test_nothing_is_removed_where_what_should_stay_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, snapshot(step))
    os.truncate(tmp_path / "step-00000003" / "model.safetensors", 10)
    checkpoint.prune(tmp_path, {3})
    assert checkpoint.steps(tmp_path) == [1, 2, 3] and checkpoint.newest_valid(tmp_path)[0] is not None
