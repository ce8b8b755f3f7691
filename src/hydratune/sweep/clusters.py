"""Who runs a sweep's jobs: processes of this machine, or workers that Slurm or Ray start on others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydratune.sweep.pool import Places, Pool
from hydratune.sweep.settings import SweepSettings
from hydratune.sweep.shared import UNITS, SharedPool

ENDED = "all of its workers have ended, and there is work left"


def pool_of(directory: Path, settings: SweepSettings) -> Pool | SharedPool:
    """What runs the units of a sweep. Raises ValueError where what it needs is not installed."""
    if settings.on == "local":
        return Pool(directory / ".workers")
    cluster = None if settings.on == "workers" else _cluster(directory, settings)
    pool = SharedPool(directory, settings.patience, cluster)
    if cluster is not None:
        cluster.start(Places.of(settings.jobs).count)
    return pool


def submit(directory: Path, settings: SweepSettings, arguments: Sequence[str]) -> str:
    """Have the cluster run the sweep's own command beside its workers. Returns what was submitted."""
    cluster = _cluster(directory, settings)
    drops = ("sweep.on=", "sweep.wait=", "hydra.sweep.dir=")
    line = [a for a in arguments if not a.startswith(drops)]
    line += ["sweep.on=workers", "sweep.wait=true", f"hydra.sweep.dir={directory}"]
    return cluster.start(Places.of(settings.jobs).count, command=line)


def _cluster(directory: Path, settings: SweepSettings) -> Slurm | Ray:
    kind = Slurm if settings.on == "slurm" else Ray
    try:
        return kind(directory, settings.cluster)
    except ImportError:
        package = "submitit" if settings.on == "slurm" else "ray"
        raise ValueError(
            f"sweep.on={settings.on}: {package} is not installed; pip install 'hydratune[{package}]'"
        ) from None


def work(directory: str) -> None:
    """One worker, until the sweep is over. In a process of its own: Ray's and Slurm's keep theirs."""
    subprocess.run([sys.executable, "-m", "hydratune.sweep.work", directory, "--jobs", "1"], check=True)


def lead(line: Sequence[str]) -> None:
    """The sweep's command."""
    subprocess.run([sys.executable, "-m", "hydratune", *line], check=True)


class Slurm:
    """An array of jobs, by submitit; its `local` executor stands in where there is no Slurm."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        """options: of submitit's executor; `cluster` is slurm, local or debug."""
        import submitit

        own = dict(options)
        self._executor = submitit.AutoExecutor(directory / UNITS / "slurm", cluster=own.pop("cluster", "slurm"))
        self._options, self._directory = own, directory
        self._jobs: list[Any] = []

    def start(self, count: int, command: Sequence[str] | None = None) -> str:
        parallel = {"slurm_array_parallelism": count + (command is not None)}
        self._executor.update_parameters(**{"name": "hydratune", **parallel, **self._options})
        with self._executor.batch():
            if command is not None:
                self._jobs.append(self._executor.submit(lead, command))
            self._jobs += [self._executor.submit(work, str(self._directory)) for _ in range(count)]
        return f"slurm: {', '.join(str(job.job_id) for job in self._jobs)}"

    def problem(self) -> str | None:
        if not all(job.done() for job in self._jobs):
            return None
        said = [(job.stderr() or "").strip().splitlines()[-1:] for job in self._jobs]
        return f"slurm: {ENDED} ({next((s[0] for s in said if s), 'they said nothing')})"

    def leave(self) -> None:
        for job in self._jobs:
            if job.state in ("PENDING", "UNKNOWN"):
                job.cancel()


class Ray:
    """Tasks of a Ray cluster, which share its CPUs and GPUs as `cluster.remote` says."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        """options: init (of ray.init, such as {address: auto}), remote (of each worker, such as {num_gpus: 1})."""
        import ray

        for key in set(options) - {"init", "remote"}:
            raise ValueError(f"sweep.cluster.{key}: for Ray, init (of ray.init) or remote (of each worker)")
        self._ray, self._directory = ray, directory
        self._remote = {"num_cpus": 1, "max_retries": 3, **options.get("remote", {})}
        if not ray.is_initialized():
            ray.init(**{"log_to_driver": False, "logging_level": "error", **options.get("init", {})})
        self._tasks: list[Any] = []

    def start(self, count: int, command: Sequence[str] | None = None) -> str:
        worker = self._ray.remote(**self._remote)(work)
        if command is not None:  # it plans and waits: it needs next to nothing
            self._tasks.append(self._ray.remote(num_cpus=0, max_retries=0)(lead).remote(list(command)))
        self._tasks += [worker.remote(str(self._directory)) for _ in range(count)]
        return f"ray: {len(self._tasks)} tasks"

    def problem(self) -> str | None:
        done, waiting = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        if waiting:
            return None
        try:
            self._ray.get(done)
        except Exception as error:
            return f"ray: {ENDED} ({str(error).splitlines()[-1]})"
        return f"ray: {ENDED}"

    def leave(self) -> None:
        _, waiting = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=10)
        for task in waiting:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()
