"""Weights between the start of fine-tuning and its end (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, equation 1).

What fine-tuning gains on the data that it sees it may lose on other data; a network between the two often keeps both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hydratune.config.job import Job
from hydratune.experiment.init_from import find_origin
from hydratune.experiment.prepare import init_rules, load_origin
from hydratune.record.run_record import Lineage, RunRecord
from hydratune.sweep.measured import Measured
from hydratune.sweep.soup import weights_of

STATUS = "interpolated"


def interpolate(job: Job, shares: Sequence[float], home: Path) -> str:
    """A row for each share of the way from the start of a complete job to its end. Returns what was done.

    A head that the start does not have, as it was made for other classes, is the end's all the way.
    Raises ValueError for a job that started from random weights.
    """
    measured = Measured.of(job)
    end = weights_of(job)
    start, own_head = _start(measured, end)
    for share in shares:
        weights = between(start, end, share)
        message = f"{share:g} of the way from its start to {job.directory.name}"
        message += "; the head is the end's" if own_head else ""
        lineage = Lineage(soup=f"interpolated {share:g}", of=[job.directory.name])
        measured.keep(home / name_of(share), weights, measured.metrics(weights), STATUS, lineage, message)
    return f"interpolated: {len(shares)} networks between the start of {job.directory.name} and its end"


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) of the start and share of the end; counters are the end's."""
    return {n: start[n].lerp(t, share) if t.is_floating_point() else t for n, t in end.items()}


def name_of(share: float) -> str:
    return f"interpolated-{share:g}"


def _start(measured: Measured, end: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """(the weights before fine-tuning, whether the head among them is the end's)"""
    job, group, network = measured.job, measured.group, measured.network
    lineage = RunRecord.read(job.directory).lineage

    def pretrained() -> Path:
        assert lineage is not None and lineage.run is not None
        return Path(lineage.run)

    origin = find_origin(job, group.body, group.spec, pretrained)
    network.load(end)
    head: Any = network.own_of_head()
    loaded = load_origin(network.state_dict(), head, origin, group.answers, init_rules(job.config))
    if loaded is None:
        raise ValueError("sweep.interpolate: the best job started from random weights, so there is no way to go")
    start = {n: t.detach().cpu().clone() for n, t in network.state_dict().items()}
    return start, bool(head & loaded.initialised.keys())
