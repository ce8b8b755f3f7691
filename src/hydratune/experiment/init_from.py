"""Where a run's first weights come from: nothing, a file, a run directory, or a pretraining made now."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydratune.config.fingerprint import content, differences, fingerprint
from hydratune.config.groups import chosen_for_pretraining
from hydratune.config.job import Job, JobConfig, Node
from hydratune.config.overrides import as_overrides
from hydratune.core.paths import shown_path
from hydratune.core.secrets import hidden_in
from hydratune.core.types import Backbone
from hydratune.data.dataset import WeightsHome
from hydratune.distributed.runtime import Numerics
from hydratune.engine.state import digest
from hydratune.experiment.components import dataset_of, runtime_of, strategy_of
from hydratune.freeze.lora import merged
from hydratune.models.load_weights import HeadAnswers, read_state_dict
from hydratune.record import checkpoint
from hydratune.record.run import write_json
from hydratune.record.run_record import Lineage, RunRecord
from hydratune.record.screen import Screen


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


def find_origin(job: Job, body: Backbone, screen: Screen, pretrain: Callable[[Job], Path]) -> Origin:
    """Follow `init_from`; `pretrain` runs the job that `auto` asks for, once, and names its directory."""
    wanted = job.config.init_from
    if wanted in (None, "auto") and body.weights is not None:
        said, tensors = body.weights()
        return Origin(
            f"model.weights: {said}", tensors, _digest_of(tensors), Lineage(weights=said), _of_classes(body.classes)
        )
    if wanted is None:
        return Origin("nothing: random initialisation")
    if wanted == "auto":
        directory = _pretrained_run(job, screen, pretrain)
        return _from_checkpoint(best_checkpoint(directory), directory)
    path = found(wanted)
    if (path / checkpoint.MANIFEST).is_file():
        return _from_checkpoint(path, path.parent.parent)
    if (path / "checkpoints").is_dir():
        return _from_checkpoint(best_checkpoint(path), path)
    if not path.exists():
        raise ValueError(f"init_from={wanted}: no such run directory, checkpoint or file of tensors")
    tensors, which = read_state_dict(path, job.config.init_key)
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


def best_checkpoint(directory: Path) -> Path:
    """Of a run directory. Raises ValueError where it holds no whole one."""
    newest, _ = checkpoint.newest_valid(directory / "checkpoints")
    if newest is None:
        raise ValueError(f"init_from={directory}: this run directory holds no whole checkpoint")
    best = json.loads((newest / "state.json").read_text())["best"].get("step")
    chosen = checkpoint.path_of(directory / "checkpoints", best or 0)
    return chosen if (chosen / checkpoint.MANIFEST).is_file() else newest


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


def _pretraining(job: Job, digests: dict[str, str]) -> tuple[JobConfig, dict[str, Any]]:
    """(the configuration of the job's pretraining, what determines its weights)"""
    config = job.config.pretraining()
    files = _digest(config.dataset, "pretrain.dataset", job, digests)
    return config, content(config, config.freeze, None, files, config.precision)


def _digest(node: Node, where: str, job: Job, digests: dict[str, str]) -> str:
    """Of a data set's files, looked at once."""
    key = json.dumps([node, list(job.trust)], sort_keys=True, default=str)
    if key not in digests:
        digests[key] = dataset_of(node, where, job.trust).files()
    return digests[key]


def config_hash(job: Job, digests: dict[str, str]) -> str:
    """Fingerprint of what the job asks for; known before its origin is, so that a sweep knows its jobs again.

    digests: of the files of data sets that were looked at before; is added to.
    """
    config = job.config
    origin = _asked_origin(job, config.init_from, digests)
    files = _digest(config.dataset, "dataset", job, digests)
    provenance: dict[str, Any] = content(config, strategy_of(job), origin, files, config.precision)
    if (
        config.threads
    ):  # They change last bits: no reason to make a run again, but one to make both if both are asked for.
        provenance["threads"] = config.threads
    if config.evals:
        provenance["evals"] = {
            name: [node, _digest(node, f"evals.{name}", job, digests)] for name, node in config.evals.items()
        }
    return fingerprint(provenance)


def _asked_origin(job: Job, wanted: str | None, digests: dict[str, str]) -> str | None:
    if wanted in (None, "auto") and (own := _asked_weights(job.config.published_weights)):
        return own
    if wanted is None:
        return None
    if wanted == "auto":
        return f"pretraining {fingerprint(_pretraining(job, digests)[1])}"
    path = found(wanted)
    if (path / "checkpoints").is_dir():
        path = best_checkpoint(path)
    if (path / checkpoint.MANIFEST).is_file():
        return checkpoint.weights_hash(path)
    return checkpoint.sha256(path) if path.is_file() else wanted


def _asked_weights(source: str | None) -> str | None:
    """What a model brings its weights from: files by their contents, what is downloaded by its name."""
    if source is None:
        return None
    path = Path(source).expanduser()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return " ".join(map(checkpoint.sha256, files)) or f"weights:{source}"


def found(wanted: str) -> Path:
    """The path that `init_from` names; best:<sweep directory>, and the file `best` in it, lead to the winner."""
    sweep = wanted.removeprefix("best:")
    path = Path(sweep).expanduser() / "best" if sweep != wanted else Path(wanted).expanduser()
    if path.name != "best" or path.is_dir():
        return path
    if not path.is_file():
        raise ValueError(f"init_from={wanted}: no winner yet (hydratune-report {path.parent} says how far it is)")
    return path.parent / path.read_text().strip()


def _pretrained_run(job: Job, screen: Screen, pretrain: Callable[[Job], Path]) -> Path:
    """The finished run that the `pretrain` node describes: found by its fingerprint, or made now, by one process."""
    config, wanted_content = _pretraining(job, {})
    wanted = fingerprint(wanted_content)
    outputs = Path(config.outputs)
    home = outputs / "pretrain"
    runtime = runtime_of(config, job.trust)
    # Of several processes the first one looks, and all of them pretrain.
    with _locked(home / f".pretrain-{wanted[:12]}.lock", screen) if runtime.rank == 0 else nullcontext():
        finished = runtime.first_says(
            _finished_run(outputs, wanted, wanted_content, screen) if not runtime.rank else ""
        )
        if finished:
            return Path(finished)
        choices = chosen_for_pretraining(job.choices)
        name = f"auto-{choices['model']}-{choices['dataset']}-{wanted[:8]}"
        screen.line("init_from=auto: no finished run of this pretraining under outputs; it runs now")
        directory = home / name
        overrides = as_overrides(config, choices)
        if runtime.rank == 0:
            _record_overrides(directory, overrides)
        pretraining = Job(config, directory, choices, overrides, job.text, job.trust, job.command, job.sweep)
        try:
            return pretrain(pretraining)
        except ValueError as error:
            if type(error) is not ValueError:  # a fault of ours
                raise
            raise ValueError(
                f"the pretraining of init_from=auto, dataset@pretrain.dataset={choices['dataset']}: {error}; "
                "init_from=RUN takes the weights of a run that is there, init_from=null none"
            ) from error


def _finished_run(outputs: Path, wanted: str, content: Mapping[str, Any], screen: Screen) -> str:
    """The directory of the finished run with this fingerprint; others of its model are named. Empty: there is none."""
    others = []
    for path in sorted([*outputs.glob("*/*/run.json"), *outputs.glob("sweeps/*/*/run.json")]):
        record = RunRecord.read(path.parent)
        if record.stage != "pretrain" or record.status != "complete" or record.provenance is None:
            continue
        if record.fingerprint == wanted or _serves(record, content):
            screen.line(f"init_from=auto: {path.parent} is this pretraining, finished {record.ended}")
            return str(path.parent)
        if record.provenance.get("model") == content["model"]:
            others.append((record.ended or "", path.parent))
    for _, other in sorted(others)[-3:]:
        screen.line(f"init_from=auto: {other} is another pretraining of this model; init_from={other} takes it")
    return ""


def _serves(record: RunRecord, wanted: Mapping[str, Any]) -> bool:
    """Whether what is typed now of precision and layout is what that run chose then, and all else is the same."""
    if record.provenance is None or "precision" not in (record.runtime or {}):
        return False
    chosen = Numerics.read(record.runtime or {}).settings()
    pinned = {k: v for k, v in chosen.items() if wanted.get(k, "auto") != "auto"}
    return not differences({**record.provenance, **pinned}, json.loads(json.dumps(wanted)))


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
