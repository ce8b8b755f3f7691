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

from hydratune import construct
from hydratune.assemble import Job, strategy_node
from hydratune.company import launched
from hydratune.data.dataset import Dataset
from hydratune.engine.state import digest
from hydratune.fingerprint import content, differences, fingerprint
from hydratune.freeze.lora import merged
from hydratune.overrides import as_overrides
from hydratune.pretrained import read_state_dict
from hydratune.record import checkpoint
from hydratune.record.progress import Screen
from hydratune.record.run import read_record, write_json
from hydratune.runtime import Numerics, Runtime
from hydratune.story import shown_path
from hydratune.types import Body


def inherited_tokenizer(job: Job) -> str | None:
    """Directory of the tokenizer that the job's first weights were trained with; None where there is none."""
    wanted, model = job.config["init_from"], job.config["model"]
    if "tokenizer" not in job.config["dataset"]:
        return None
    if job.config["resume"] is not None and (job.directory / "tokenizer").is_dir():
        return str(job.directory / "tokenizer")
    if wanted is None or (wanted == "auto" and model.get("name") and model.get("weights")):
        return None
    if wanted == "auto":
        # A function of the pretraining's corpus, so it is known before that runs.
        data = construct.construct(job.config["pretrain"]["dataset"], "pretrain.dataset", job.trust)
        own = getattr(data, "tokenizer", None)
        return None if own is None else own.home
    path = found(wanted)
    run = path.parent.parent if (path / checkpoint.MANIFEST).is_file() else path.parent
    homes = (path / "tokenizer", path, path.parent, run / "tokenizer")
    home = next((home for home in homes if (home / "tokenizer.json").is_file()), None)
    if home is None and path.exists() and job.config["dataset"]["tokenizer"].get("name") is None:
        raise ValueError(
            f"init_from={wanted}: no tokenizer lies beside these weights; dataset.tokenizer.name should be the one "
            "that they were trained with (a directory, or a name of the hub)"
        )
    return None if home is None else str(home)


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from."""

    said: str  # what the configuration calls it
    tensors: Mapping[str, torch.Tensor] | None = None
    hash: str | None = None
    lineage: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None  # what its head was made for, where that is known
    hint: str = ""  # for an error, what is known of the network that it was
    held: int | None = None  # descriptor that keeps the checkpoint from being pruned, while this process lives


def find_origin(job: Job, body: Body, screen: Screen, pretrain: Callable[[Job], Path]) -> Origin:
    """Follow `init_from`; `pretrain` runs the job that `auto` asks for, once, and names its directory."""
    wanted = job.config["init_from"]
    if wanted in (None, "auto") and body.weights is not None:
        said, tensors = body.weights()
        return Origin(f"model.weights: {said}", tensors, _digest_of(tensors), {"weights": said}, body.classes)
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
    tensors, which = read_state_dict(path, job.config["init_key"])
    said = f"{path} ({which})" if which else str(path)
    return Origin(said, tensors, checkpoint.sha256(path), {"file": str(path)}, _classes_beside(path))


def _classes_beside(path: Path) -> list[str] | None:
    """What the head in a file was made for, as a run's record or a library's configuration beside it says."""
    home, classes = path.parent, None
    with suppress(OSError, ValueError, AttributeError, TypeError):
        if (home / "config.json").is_file():
            named = json.loads((home / "config.json").read_text()).get("id2label") or {}
            names = [str(named[i]) for i in sorted(named, key=int)]
            classes = None if names == [f"LABEL_{i}" for i in range(len(names))] else names
        else:
            made = home if (home / checkpoint.MANIFEST).is_file() else best_checkpoint(home)
            classes = json.loads((made / "state.json").read_text()).get("classes")
    return classes


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
    record = read_record(directory)
    lineage = {
        "run": str(shown_path(directory)),
        "checkpoint": path.name,
        "sha256": checkpoint.model_hash(path),
        "averaged": bool(snapshot.ema),
        "metrics": record.get("metrics"),
        "monitor": record.get("monitor"),
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
        held,
    )


def _pretraining(job: Job, digests: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the configuration of the job's pretraining, what determines its weights)"""
    config = {**job.config, **job.config["pretrain"], "stage": "pretrain", "init_from": None, "resume": "auto"}
    config["dry_run"] = False
    config["runtime"] = {**job.config["runtime"], **job.config["pretrain"]["runtime"]}
    config["freeze"] = {construct.TARGET: "hydratune.freeze.strategies.Nothing", "norm": "frozen"}
    runtime: Runtime = construct.construct(config["runtime"], "runtime", job.trust)
    files = _digest(config["dataset"], "pretrain.dataset", job, digests)
    return config, content(config, None, files, runtime.precision)


def _digest(node: Mapping[str, Any], where: str, job: Job, digests: dict[str, str]) -> str:
    """Of a data set's files, looked at once."""
    key = json.dumps([node, list(job.trust)], sort_keys=True, default=str)
    if key not in digests:
        data: Dataset = construct.construct(node, where, job.trust)
        digests[key] = data.files()
    return digests[key]


def asked(job: Job, digests: dict[str, str]) -> str:
    """Fingerprint of what the job asks for; known before its origin is, so that a sweep knows its jobs again.

    digests: of the files of data sets that were looked at before; is added to.
    """
    config, wanted = job.config, job.config["init_from"]
    origin = _asked_origin(job, wanted, digests)
    files = _digest(config["dataset"], "dataset", job, digests)
    freeze = {**strategy_node(config["freeze"], job.sweep, job.trust), "norm": config["freeze"].get("norm") or "frozen"}
    made_of = content({**config, "freeze": freeze}, origin, files, config["runtime"]["precision"])
    # Threads change last bits: no reason to make a run again, but one to make both where both are asked for.
    return fingerprint({**made_of, **({"threads": threads} if (threads := config["runtime"]["threads"]) else {})})


def _asked_origin(job: Job, wanted: str | None, digests: dict[str, str]) -> str | None:
    if wanted in (None, "auto") and (own := _asked_weights(job.config["model"])):
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


def _asked_weights(model: Mapping[str, Any]) -> str | None:
    """What a model brings its weights from: files by their contents, what is downloaded by its name."""
    weights = model.get("weights")
    if not weights:
        return None
    source = str(model.get("name") if weights is True else weights)
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
    outputs = Path(config["outputs"])
    home = outputs / "pretrain"
    runtime: Runtime = construct.construct(config["runtime"], "runtime", job.trust, **launched())
    # Of several processes the first one looks, and all of them pretrain.
    with _locked(home / f".pretrain-{wanted[:12]}.lock", screen) if runtime.rank == 0 else nullcontext():
        finished = runtime.first_says(
            _finished_run(outputs, wanted, wanted_content, screen) if not runtime.rank else ""
        )
        if finished:
            return Path(finished)
        groups = ("model", "dataset", "optimizer", "schedule")
        choices = {g: job.choices.get(f"{g}@pretrain.{g}", job.choices.get(g, "")) for g in groups}
        choices["freeze"], choices["stage"] = "none", "pretrain"
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
    for found in sorted([*outputs.glob("*/*/run.json"), *outputs.glob("sweeps/*/*/run.json")]):
        known = json.loads(found.read_text())
        if known.get("stage") != "pretrain" or known.get("status") != "complete":
            continue
        if known["fingerprint"] == wanted or _serves(known, content):
            screen.line(f"init_from=auto: {found.parent} is this pretraining, finished {known['ended']}")
            return str(found.parent)
        if known["made_of"]["model"] == content["model"]:
            others.append((known["ended"], found.parent))
    for _, other in sorted(others)[-3:]:
        screen.line(f"init_from=auto: {other} is another pretraining of this model; init_from={other} takes it")
    return ""


def _serves(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether what is typed now of precision and layout is what that run chose then, and all else is the same."""
    if "precision" not in (known.get("runtime") or {}):
        return False
    chosen = Numerics.read(known["runtime"]).settings()
    pinned = {k: v for k, v in chosen.items() if wanted.get(k, "auto") != "auto"}
    return not differences({**known["made_of"], **pinned}, json.loads(json.dumps(wanted)))


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
