"""Where a run's first weights come from: nothing, a file, a run directory, or a pretraining made now."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydratune import construct
from hydratune.assemble import Job
from hydratune.data.dataset import Dataset
from hydratune.fingerprint import content, fingerprint
from hydratune.freeze.lora import merged
from hydratune.overrides import as_overrides
from hydratune.pretrained import read_tensors
from hydratune.record import checkpoint
from hydratune.record.progress import Screen
from hydratune.record.run import read_record, write_json
from hydratune.runtime import Runtime
from hydratune.story import shown_path
from hydratune.types import Body


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from."""

    said: str  # what the configuration calls it
    tensors: Mapping[str, torch.Tensor] | None = None
    hash: str | None = None
    lineage: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None  # what its head was made for, where that is known
    hint: str = ""  # for an error, what is known of the network that it was


def find_origin(job: Job, body: Body, screen: Screen, pretrain: Callable[[Job], Path]) -> Origin:
    """Follow `init_from`; `pretrain` runs the job that `auto` asks for, once, and names its directory."""
    asked = job.config["init_from"]
    if asked in (None, "auto") and body.weights is not None:
        said, tensors = body.weights()
        file = Path(said)
        known = checkpoint.sha256(file) if file.is_file() else f"weights:{said}"
        return Origin(f"model.weights: {said}", tensors, hash=known, lineage={"weights": said})
    if asked is None:
        return Origin("nothing: random initialisation")
    if asked == "auto":
        return _from_run(_pretrained_run(job, screen, pretrain))
    path = Path(asked).expanduser()
    if (path / checkpoint.MANIFEST).is_file():
        return _from_checkpoint(path, path.parent.parent)
    if (path / "checkpoints").is_dir():
        return _from_run(path)
    if not path.exists():
        raise ValueError(f"init_from={asked}: no such run directory, checkpoint or file of tensors")
    return Origin(str(path), read_tensors(path), checkpoint.sha256(path), {"file": str(path)})


def _from_run(directory: Path) -> Origin:
    """The best checkpoint of a run directory."""
    newest, _ = checkpoint.newest_valid(directory / "checkpoints")
    if newest is None:
        raise ValueError(f"init_from={directory}: this run directory holds no whole checkpoint")
    best = checkpoint.load(newest).state["best"].get("step")
    chosen = directory / "checkpoints" / f"step-{best or 0:08d}"
    return _from_checkpoint(chosen if (chosen / checkpoint.MANIFEST).is_file() else newest, directory)


def _from_checkpoint(path: Path, directory: Path) -> Origin:
    snapshot = checkpoint.load(path)
    record = read_record(directory)
    lineage = {
        "run": str(shown_path(directory)),
        "checkpoint": path.name,
        "sha256": checkpoint.model_hash(path),
        "averaged": bool(snapshot.ema),
        "metrics": record.get("metrics"),
        "parent": record.get("lineage"),
    }
    model = (record.get("made_of") or {}).get("model")
    return Origin(
        str(path),
        merged({**snapshot.model, **snapshot.ema}),
        checkpoint.weights_hash(path),
        lineage,
        snapshot.state.get("classes"),
        f". That run's model was {model}" if model else "",
    )


def _pretrained_run(job: Job, screen: Screen, pretrain: Callable[[Job], Path]) -> Path:
    """The finished run that the `pretrain` node describes: found by its fingerprint, or made now, by one process."""
    config = {**job.config, **job.config["pretrain"], "stage": "pretrain", "init_from": None, "resume": "auto"}
    config["dry_run"] = False
    config["freeze"] = {construct.TARGET: "hydratune.freeze.strategies.Nothing", "norm": "frozen"}
    data: Dataset = construct.construct(config["dataset"], "pretrain.dataset", job.trust)
    runtime: Runtime = construct.construct(config["runtime"], "runtime", job.trust)
    wanted_content = content(config, None, data.files(), runtime.precision)
    wanted = fingerprint(wanted_content)
    outputs = Path(config["outputs"])
    home = outputs / "pretrain"
    with _locked(home / f".pretrain-{wanted[:12]}.lock", screen):
        others = []
        for found in sorted([*outputs.glob("*/*/run.json"), *outputs.glob("sweeps/*/*/run.json")]):
            known = json.loads(found.read_text())
            if known.get("stage") != "pretrain" or known.get("status") != "complete":
                continue
            if known["fingerprint"] == wanted:
                screen.line(f"init_from=auto: {found.parent} is this pretraining, finished {known['ended']}")
                return found.parent
            if known["made_of"]["model"] == wanted_content["model"]:
                others.append(found.parent)
        for other in others[-3:]:
            screen.line(f"init_from=auto: {other} is another pretraining of this model; init_from={other} takes it")
        groups = ("model", "dataset", "optimizer", "schedule")
        choices = {g: job.choices.get(f"{g}@pretrain.{g}", job.choices.get(g, "")) for g in groups}
        choices["freeze"], choices["stage"] = "none", "pretrain"
        name = f"auto-{choices['model']}-{choices['dataset']}-{wanted[:8]}"
        screen.line("init_from=auto: no finished run of this pretraining under outputs; it runs now")
        directory = home / name
        overrides = as_overrides(config, choices)
        _record_overrides(directory, overrides)
        pretraining = Job(config, directory, choices, overrides, job.text, job.trust, job.command, job.sweep)
        return pretrain(pretraining)


def _record_overrides(directory: Path, overrides: list[str]) -> None:
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    write_json(directory / ".hydra" / "overrides.yaml", overrides)  # JSON is YAML


@contextmanager
def _locked(path: Path, screen: Screen) -> Iterator[None]:
    """One process at a time; the others wait. The kernel lets go of it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            screen.line("init_from=auto: another job is running this pretraining; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
