"""Where a run's first weights come from: nothing, a file, a run directory, or a pretraining made now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydratune.config.fingerprint import fingerprint
from hydratune.config.job import Job
from hydratune.config.origin import found
from hydratune.core.paths import shown_path
from hydratune.core.secrets import hidden_in
from hydratune.core.types import Backbone, ImageSpec, Normalisation, Spec
from hydratune.data.dataset import WeightsHome
from hydratune.engine.state import digest
from hydratune.experiment.components import dataset_of
from hydratune.experiment.locate import best_checkpoint
from hydratune.freeze.lora import merged
from hydratune.models.foreign import read_weights
from hydratune.models.load_weights import HeadAnswers
from hydratune.record import checkpoint
from hydratune.record.run_record import Lineage, RunRecord


def weights_home(job: Job) -> WeightsHome | None:
    """Where the job's first weights lie, for what a data set takes over with them; None where they lie nowhere."""
    config = job.config
    wanted, own = config.init_from, config.resume is not None and RunRecord.read(job.directory).exists
    elsewhere = wanted is not None and not (wanted == "auto" and config.published_weights)
    if not own and not elsewhere:
        return None

    def directories() -> Iterator[Path]:
        """As far as they are asked for: what a pretraining keeps with its weights has to be computed first."""
        if own:
            yield job.directory
        if wanted == "auto" and elsewhere:
            # A function of the pretraining's data, so it is known before that runs.
            kept = dataset_of(config.pretrain.dataset, "pretrain.dataset", job.trust).kept_at()
            yield from () if kept is None else (kept,)
        elif wanted is not None and elsewhere:
            path = found(wanted)
            yield from (path, path.parent)
            if (path / checkpoint.MANIFEST).is_file():
                yield path.parent.parent

    required = wanted is not None and elsewhere and wanted != "auto" and found(wanted).exists()
    return WeightsHome(str(wanted), directories, required)


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from."""

    message: str  # what the configuration calls it
    tensors: Mapping[str, torch.Tensor] | None = None
    hash: str | None = None
    lineage: Lineage | None = None
    head: HeadAnswers | None = None  # what its head was made for, where that is known
    hint: str = ""  # for an error, what is known of the network that it was
    held: int | None = None  # descriptor that keeps the checkpoint from being pruned, while this process lives


def find_origin(job: Job, body: Backbone, spec: Spec, pretrained: Callable[[], Path]) -> Origin:
    """Follow `init_from`; `pretrained` names the directory of the run that `auto` asks for. spec: of the data."""
    wanted = job.config.init_from
    if wanted in (None, "auto") and body.weights is not None:
        said, tensors = body.weights()
        return Origin(
            f"model.weights: {said}", tensors, _digest_of(tensors), Lineage(weights=said), _of_classes(body.classes)
        )
    if wanted is None:
        return Origin("nothing: random initialisation")
    if wanted == "auto":
        directory = pretrained()
        return _from_checkpoint(best_checkpoint(directory), directory)
    path = found(wanted)
    if (path / checkpoint.MANIFEST).is_file():
        return _from_checkpoint(path, path.parent.parent)
    if (path / "checkpoints").is_dir():
        return _from_checkpoint(best_checkpoint(path), path)
    if not path.exists():
        raise ValueError(f"init_from={wanted}: no such run directory, checkpoint or file of tensors")
    ours = Normalisation(spec.mean, spec.std) if isinstance(spec, ImageSpec) else None
    tensors, which = read_weights(path, job.config.init_key, ours, body.source)
    said = f"{path} ({which})" if which else str(path)
    return Origin(said, tensors, checkpoint.sha256(path), Lineage(file=str(path)), _head_beside(path))


def _of_classes(names: Sequence[str] | None) -> HeadAnswers | None:
    return None if names is None else HeadAnswers(None, hidden_in(list(names)))


def _head_of(state: Mapping[str, Any]) -> HeadAnswers | None:
    """As a checkpoint's state says it."""
    if "head" in state:
        return HeadAnswers(state["head"]["kind"], state["head"]["answers"])
    return _of_classes(state.get("classes"))


def _head_beside(path: Path) -> HeadAnswers | None:
    """What the head in a file was made for, as a run's record or a library's configuration beside it says."""
    home = path.parent
    with suppress(OSError, ValueError, AttributeError, TypeError):
        if (home / "config.json").is_file():
            named = json.loads((home / "config.json").read_text()).get("id2label") or {}
            names = [str(named[i]) for i in sorted(named, key=int)]
            return None if names == [f"LABEL_{i}" for i in range(len(names))] else _of_classes(names)
        made = home if (home / checkpoint.MANIFEST).is_file() else best_checkpoint(home)
        return _head_of(json.loads((made / "state.json").read_text()))
    return None


def _digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names and values: a name of weights, or an index of their files, would be the same for others."""
    named = sorted(tensors.items())
    return fingerprint(
        {"tensors": [[n, str(t.dtype), list(t.shape)] for n, t in named], "values": digest(t for _, t in named)}
    )


def _from_checkpoint(path: Path, directory: Path) -> Origin:
    held = checkpoint.hold(path)
    snapshot = checkpoint.load(path)
    record = RunRecord.read(directory)
    lineage = Lineage(
        run=str(shown_path(directory)),
        checkpoint=path.name,
        sha256=checkpoint.model_hash(path),
        averaged=bool(snapshot.ema),
        metrics=record.metrics,
        monitor=record.monitor,
        parent=None if record.lineage is None else record.lineage.as_json(),
    )
    model = (record.provenance or {}).get("model")
    return Origin(
        str(path),
        merged({**snapshot.model, **snapshot.ema}),
        checkpoint.weights_hash(path),
        lineage,
        _head_of(snapshot.state),
        f". That run's model was {model}" if model else "",
        held,
    )
