"""By what a sweep knows its jobs again: a fingerprint of what was asked for, before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydratune.config.aliases import upgraded
from hydratune.config.fingerprint import content, fingerprint
from hydratune.config.job import Job
from hydratune.config.origin import found
from hydratune.experiment.components import strategy_of
from hydratune.experiment.locate import best_checkpoint
from hydratune.experiment.pretraining import files_digest, pretraining_of
from hydratune.record import checkpoint

Names = Callable[[Any], Any]  # which version's names a configuration is written with


def config_hash(job: Job, digests: dict[str, str], names: Names = upgraded) -> str:
    """Fingerprint of what the job asks for; known before its origin is, so that a sweep knows its jobs again.

    digests: of the files of data sets that were looked at before; is added to. names: `former` gives the hash that the
    version before had.
    """
    config = job.config
    origin = _asked_origin(job, digests, names)
    files = files_digest(config.dataset, "dataset", job, digests)
    provenance: dict[str, Any] = names(content(config, strategy_of(job), origin, files, config.precision))
    if (
        config.threads
    ):  # They change last bits: no reason to make a run again, but to make both where both are asked for
        provenance["threads"] = config.threads
    if config.evals:
        provenance["evals"] = {
            name: [node, files_digest(node, f"evals.{name}", job, digests)] for name, node in config.evals.items()
        }
    return fingerprint(provenance)


def _asked_origin(job: Job, digests: dict[str, str], names: Names) -> str | None:
    wanted = job.config.init_from
    if wanted in (None, "auto") and (own := _asked_weights(job.config.published_weights)):
        return own
    if wanted is None:
        return None
    if wanted == "auto":
        return f"pretraining {fingerprint(names(pretraining_of(job, digests)[1]))}"
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
