"""What a run tells the person who looks: tables on the screen, pictures and text in TensorBoard."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydratune import __version__
from hydratune.assemble import Job
from hydratune.freeze import report
from hydratune.markup import in_markdown
from hydratune.models.network import Network
from hydratune.record.progress import Screen, duration, markdown_table
from hydratune.record.run import Run
from hydratune.runtime import Runtime
from hydratune.types import LoadReport, Phase


def shown_path(path: Path) -> Path:
    """Relative to where the user is, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def label(job: Job) -> str:
    return "  ".join(f"{g}={job.choices[g]}" for g in ("model", "dataset", "freeze", "optimizer") if job.choices.get(g))


def show_load(screen: Screen, run: Run, loaded: LoadReport | None) -> None:
    if loaded is not None:
        renamed = {n: f"there as {there}" for n, there in loaded.renamed.items()}
        counts = [
            ("loaded", len(loaded.loaded), _some({n: why for n, why in renamed.items() if n in loaded.loaded})),
            ("skipped", len(loaded.skipped), _some(dict(sorted(loaded.skipped.items(), key=_by_reason)))),
            ("initialised", len(loaded.initialised), ", ".join(list(loaded.initialised)[:6])),
        ]
        title = f"weights from {loaded.source}: {loaded.trunk_share:.0%} of the trunk"
        screen.table(title, ("tensors", "count", "which and why"), counts)
        every = [(n, "loaded", renamed.get(n, "")) for n in loaded.loaded]
        every += [(n, "skipped", why) for n, why in loaded.skipped.items()]
        every += [(n, "initialised", why) for n, why in loaded.initialised.items()]
        run.table(
            "load", f"**{in_markdown(title)}**\n\n" + markdown_table(("tensor", "what became of it", "why"), every)
        )


def show_phases(
    screen: Screen,
    run: Run | None,
    network: Network,
    phases: Sequence[Phase],
    costs: Sequence[tuple[str, ...]],
    runtime: Runtime,
    how: str,
) -> None:
    """The freeze report; run: where it is kept, unless nothing is to be trained."""
    trains = report.trains(network.groups, phases)
    screen.table("what trains", report.TRAINS, trains)
    text = markdown_table(report.TRAINS, trains)
    if costs:
        screen.table("what a step costs", report.COSTS, costs)
        text += "\n\n" + markdown_table(report.COSTS, costs)
    screen.line(f"computes in {runtime.chosen} on {runtime.torch_device}: {how}")
    if run is not None:
        run.table("freeze", text)


def _by_reason(skipped: tuple[str, str]) -> bool:
    """What is known here and not taken before what is not known."""
    return skipped[1] == "no such tensor here"


def _some(reasons: Mapping[str, str], most: int = 3) -> str:
    shown = [f"{name}: {why}" for name, why in list(reasons.items())[:most]]
    return "; ".join(shown) + (f"; and {len(reasons) - most} more (load.md)" if len(reasons) > most else "")


def show_result(screen: Screen, run: Run, job: Job, metrics: Mapping[str, float], monitor: str, best_step: str) -> None:
    """The table at the end: this run, and above it the one that its weights came from."""
    row = [job.config["stage"], label(job), *shown(metrics, monitor), best_step, duration(run.seconds)]
    rows = [row]
    parent = (run.record.get("lineage") or {}).get("metrics")
    if parent:
        own = run.record["lineage"].get("monitor") or monitor
        label_of = run.record["lineage"]["run"] + ("" if own == monitor else f" ({own})")
        rows.insert(0, ["pretrain", label_of, *shown(parent, own), "", ""])
    screen.table("result", ("stage", "what", f"val {monitor}", f"test {monitor}", "best step", "time"), rows)
    beside = [k.removeprefix("val_") for k in metrics if k.startswith("val_") and k != f"val_{monitor}"]
    screen.table("beside it", ("metric", "val", "test"), [[k, *shown(metrics, k)] for k in beside])
    if metrics.get("val_mcc") == 0:  # Matthews' correlation of what never changes
        screen.line("one class is said of every sample of val: freeze=none, more epochs or another rate may learn more")
    screen.line(f"run directory:  {shown_path(job.directory)}")
    screen.line(f"look at it:     tensorboard --logdir {shlex.quote(str(job.config['outputs']))}")


def shown(metrics: Mapping[str, float], monitor: str) -> list[str]:
    both = [metrics.get(k) for k in (f"val_{monitor}", f"test_{monitor}")]
    return ["-" if v is None else f"{v:.4f}" if abs(v) < 100 else f"{v:,.1f}" for v in both]


def hparams(job: Job) -> dict[str, Any]:
    """What was chosen and what was typed; one column each in TensorBoard's HPARAMS tab, which shows five at first."""
    shown: dict[str, Any] = {g: job.choices.get(g, "") for g in ("dataset", "freeze", "model", "optimizer")}
    shown["optimizer.lr"] = job.config["optimizer"]["lr"]
    shown["seed"] = job.config["seed"]
    for override in job.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in shown and not key.startswith(("hydra", "outputs", "name", "resume", "trust", "test", "stage")):
            shown[key] = value
    return shown


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "safetensors")
    return {"hydratune": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
