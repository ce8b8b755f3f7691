"""Checkpoints: safetensors and JSON, published by rename after fsync, verified when read. No pickle.

step-00001200/model.safetensors      every parameter and buffer by its name in the source model
              optimizer.safetensors  <parameter>|<state key>
              ema.safetensors        averaged weights, where asked for
              start.safetensors      the weights that optimizer.l2_sp pulls towards, where asked for
              state.json             step, meters, best so far, what the run was made of
              manifest.json          size and SHA-256 of each of the above; written last
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hydratune.core.paths import MANIFEST as MANIFEST

REPLACED = ".replaced"
PARTS = ("model", "optimizer", "ema", "start")


@dataclass(frozen=True)
class Snapshot:
    """All that a trial needs to go on."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)


class NotSaved(OSError):
    """A checkpoint could not be written; those that were there before are as they were."""


def save(directory: Path, step: int, snapshot: Snapshot) -> Path:
    """Write `directory`/step-<step>; what exists there already is replaced only by a whole one. Raises NotSaved."""
    from safetensors import SafetensorError

    try:
        return _saved(directory, step, snapshot)
    except (OSError, SafetensorError) as error:
        left = newest_valid(directory)[0]
        before = f"the one before it, {left.name}, is whole" if left else "there is none before it"
        raise NotSaved(f"no checkpoint of step {step} in {directory} ({error}); {before}") from error


def _saved(directory: Path, step: int, snapshot: Snapshot) -> Path:
    from safetensors.torch import save_file

    final = directory / f"step-{step:08d}"
    partial = directory / f".partial-{final.name}-{os.getpid()}"
    directory.mkdir(parents=True, exist_ok=True)
    # Of a process that was killed while it saved; the run is claimed.
    for leftover in directory.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for moved in directory.glob(f"step-*{REPLACED}"):
        _put_back(moved)
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
        replaced = final.with_name(f"{final.name}{REPLACED}")
        if final.exists():  # under that name it is still found, should the process end just here
            os.rename(final, replaced)
        try:
            os.rename(partial, final)
        finally:
            if replaced.exists():
                _put_back(replaced)
        fsync(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _put_back(moved: Path) -> None:
    """A checkpoint that was to be replaced: it goes where another has come, and comes back where none has."""
    final = moved.with_name(moved.name.removesuffix(REPLACED))
    if final.exists():
        shutil.rmtree(moved, ignore_errors=True)
    else:
        os.rename(moved, final)


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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
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
    published = {p.name.removesuffix(REPLACED) for p in directory.glob("step-*") if (p / MANIFEST).exists()}
    return sorted(int(name.removeprefix("step-")) for name in published)


def path_of(directory: Path, step: int) -> Path:
    path = directory / f"step-{step:08d}"
    moved = path.with_name(f"{path.name}{REPLACED}")
    return moved if not path.exists() and moved.exists() else path


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint that verifies, complaints about newer ones that do not)."""
    complaints: list[str] = []
    for step in reversed(steps(directory)):
        path = path_of(directory, step)
        try:
            verify(path)
            return path, complaints
        except ValueError as error:
            complaints.append(str(error))
    return None, complaints


def prune(directory: Path, keep: set[int], newest: int = 1) -> None:
    """Remove all but the checkpoints of the steps in `keep`, the `newest` ones, and those that somebody holds.

    Only whole ones count as kept: where one of those is damaged, none is removed.
    """
    every = steps(directory)
    kept = keep.union(every[-newest:])
    if any(not _sized(path_of(directory, step)) for step in kept.intersection(every)):
        return
    for path in directory.glob("step-*"):
        if not (path / MANIFEST).exists():  # of a removal that was cut off: what is published has one
            shutil.rmtree(path)
    for step in every:
        path = path_of(directory, step)
        if step not in kept and not _is_held(path):
            shutil.rmtree(path)


def _sized(path: Path) -> bool:
    """Whether its files have the sizes that its manifest says: cheap enough for every save."""
    try:
        entries = json.loads((path / MANIFEST).read_text())
        return all((path / name).stat().st_size == entry["size"] for name, entry in entries.items())
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return False


def hold(path: Path) -> int:
    """Keep this checkpoint from being pruned while the descriptor is open: a child may have to begin from it again."""
    descriptor = os.open(path / MANIFEST, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _is_held(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path / MANIFEST, "r+b") as file:  # NFS locks what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
