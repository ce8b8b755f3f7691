"""Checkpoints are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from hydratune.record import checkpoint
from hydratune.record.checkpoint import Snapshot

SNAPSHOT = Snapshot({"w": torch.arange(6.0).view(2, 3)}, {"w|momentum_buffer": torch.ones(2, 3)}, {}, {"step": 3})


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, SNAPSHOT)
    again = checkpoint.load(path)
    assert torch.equal(again.model["w"], SNAPSHOT.model["w"]) and again.state == {"step": 3} and again.ema == {}
    assert path.name == "step-00000003"
    assert set(json.loads((path / "manifest.json").read_text())) == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


@pytest.mark.scenario(20)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    good = checkpoint.save(tmp_path, 9900, SNAPSHOT)
    bad = checkpoint.save(tmp_path, 10000, SNAPSHOT)
    content = bytearray((bad / name).read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    (bad / name).write_bytes(content) if damage != "remove" else (bad / name).unlink()
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.load(bad)
    newest, complaints = checkpoint.newest_valid(tmp_path)
    assert newest == good
    assert complaints or (name, damage) == ("manifest.json", "remove")


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_a_save_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    checkpoint.save(tmp_path, 1, SNAPSHOT)
    real, calls = getattr(os, function), 0

    def fail_at(n: int) -> object:
        def failing(*args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == n:
                raise OSError(28, "No space left on device")
            return real(*args)

        return failing

    for n in range(1, 10):
        calls = 0
        monkeypatch.setattr(os, function, fail_at(n))
        try:
            checkpoint.save(tmp_path, 2, SNAPSHOT)
            break
        except OSError:
            assert checkpoint.newest_valid(tmp_path)[0] is not None
            assert not list(tmp_path.glob(".partial*"))
    monkeypatch.undo()
    checkpoint.load(tmp_path / "step-00000001")


@pytest.mark.scenario(22)
def test_prune_keeps_what_it_is_told(tmp_path: Path) -> None:
    for step in (1, 2, 9900, 10000):
        checkpoint.save(tmp_path, step, SNAPSHOT)
    checkpoint.prune(tmp_path, {2, 10000})
    assert checkpoint.steps(tmp_path) == [2, 10000]


def test_a_directory_is_claimed_by_one(tmp_path: Path) -> None:
    from hydratune.record.claim import claim

    held = claim(tmp_path)
    with pytest.raises(ValueError, match="in use by another live run"):
        claim(tmp_path)
    os.close(held)
    os.close(claim(tmp_path))
