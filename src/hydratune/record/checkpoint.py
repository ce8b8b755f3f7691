"""Checkpoints: safetensors and JSON, published by rename after fsync, verified when read. No pickle.

step-00001200/model.safetensors      every parameter and buffer by its name in the source model
              optimizer.safetensors  <parameter>|<state key>
              ema.safetensors        averaged weights, where asked for
              start.safetensors      the weights that optimizer.l2_sp pulls towards, where asked for
              state.json             step, meters, best so far, what the run was made of
              manifest.json          size and SHA-256 of each of the above; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

MANIFEST = "manifest.json"
PARTS = ("model", "optimizer", "ema", "start")


@dataclass(frozen=True)
class Snapshot:
    """All that a trial needs to go on."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)


def save(directory: Path, step: int, snapshot: Snapshot) -> Path:
    """Write `directory`/step-<step>; what exists there already is replaced only by a whole one."""
    from safetensors.torch import save_file

    final = directory / f"step-{step:08d}"
    partial = directory / f".partial-{final.name}-{os.getpid()}"
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".partial-*"):  # of a process that was killed while it saved; the run is claimed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir()
        for name in PARTS:
            tensors = {k: t.detach().contiguous().cpu() for k, t in getattr(snapshot, name).items()}
            if tensors:
                save_file(tensors, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(snapshot.state, indent=1))
        entries = {}
        for path in sorted(partial.iterdir()):
            fsync(path)
            entries[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        (partial / MANIFEST).write_text(json.dumps(entries, indent=1))
        fsync(partial / MANIFEST)
        fsync(partial)
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        fsync(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def load(path: Path) -> Snapshot:
    """Verify and read. Raises ValueError naming the file that is missing, truncated or changed."""
    from safetensors.torch import load_file

    verify(path)
    parts = {n: path / f"{n}.safetensors" for n in PARTS}
    tensors = {n: load_file(p) if p.exists() else {} for n, p in parts.items()}
    return Snapshot(**tensors, state=json.loads((path / "state.json").read_text()))


def verify(path: Path) -> None:
    try:
        entries = json.loads((path / MANIFEST).read_text())
        for name, entry in entries.items():
            if (path / name).stat().st_size != entry["size"] or sha256(path / name) != entry["sha256"]:
                raise ValueError(f"checkpoint {path}: {name} is not what its manifest says")
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is not whole ({type(error).__name__}: {error})") from None


def model_hash(path: Path) -> str:
    """SHA-256 of the weights, from the manifest."""
    return json.loads((path / MANIFEST).read_text())["model.safetensors"]["sha256"]


def weights_hash(path: Path) -> str:
    """The same, and that of the averaged weights where there are any: what a run that starts from here starts from."""
    entries = json.loads((path / MANIFEST).read_text())
    return "+".join(entries[f"{n}.safetensors"]["sha256"] for n in ("model", "ema") if f"{n}.safetensors" in entries)


def steps(directory: Path) -> list[int]:
    """Steps of the published checkpoints, ascending."""
    return sorted(int(p.name.removeprefix("step-")) for p in directory.glob("step-*") if (p / MANIFEST).exists())


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that verifies, complaints about newer ones that do not)."""
    complaints: list[str] = []
    for step in reversed(steps(directory)):
        path = directory / f"step-{step:08d}"
        try:
            verify(path)
            return path, complaints
        except ValueError as error:
            complaints.append(str(error))
    return None, complaints


def prune(directory: Path, keep: set[int]) -> None:
    """Remove all but the checkpoints of the steps in `keep`."""
    for step in steps(directory):
        if step not in keep:
            shutil.rmtree(directory / f"step-{step:08d}")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
