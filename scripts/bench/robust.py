"""What fine-tuning costs on data that it has not seen: two published claims, on generated pictures.

    python scripts/bench/robust.py lp_ft [--seeds 1 2 3 4 5] [--rates 0.01 0.03 0.1]
    python scripts/bench/robust.py wise_ft [--seeds 1 2 3 4 5] [--picture FILE.png]

lp_ft (arXiv 2202.10054: a linear probe and then everything does better out of distribution than everything at once): a
network that has learned shapes100 is fine-tuned to shapes10; evaluation sets with noise (input) and with other textures
(feature) are never trained on. Each arm at its rate that is best on validation, which is not shifted.

wise_ft (arXiv 2109.01903: a network between start and end keeps what both can): a network that has learned shapes10 is
fine-tuned to noisy pictures of the same classes; an evaluation set without noise shows what is forgotten.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transfer import said, sweep

COMMON = ["stage=finetune", "model=resnet9_w16", "engine.eval_every=100", "test=true", "pretrain.dataset.train=8000",
          "pretrain.optimizer.lr=0.1", "pretrain.epochs=5", "dataset=shapes10", "dataset.train=500"]  # fmt: skip
SETS = {
    "lp_ft": {"input": ["shift=input"], "feature": ["shift=feature"]},
    "wise_ft": {"clean": []},
}
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def evals(study: str) -> list[str]:
    found = []
    for name, settings in SETS[study].items():
        found += [f"+dataset@evals.{name}=shapes10", *(f"evals.{name}.{setting}" for setting in settings)]
    return found


def lp_ft(seeds: list[int], rates: list[str], home: Path, console: Console) -> None:
    line = [*COMMON, *evals("lp_ft"), "dataset@pretrain.dataset=shapes100", "steps=100", "freeze=head_only,none,lp_ft",
            "seed=" + ",".join(map(str, seeds)), "optimizer.lr=" + ",".join(rates)]  # fmt: skip
    by_arm: dict[str, dict[float, list[dict[str, float]]]] = {}
    for record in sweep(line, home / "sweep"):
        arm, rate = record["choices"]["freeze"], record["provenance"]["optimizer"]["lr"]
        by_arm.setdefault(arm, {}).setdefault(rate, []).append(record["metrics"])
    table = Table(title=f"accuracy, {len(seeds)} seeds: mean and standard deviation")
    for column in ("freeze", "rate", "test", *SETS["lp_ft"]):
        table.add_column(column)
    for arm, by_rate in by_arm.items():
        rate = max(by_rate, key=lambda r: statistics.mean(m["val_accuracy"] for m in by_rate[r]))
        names = ("test", *SETS["lp_ft"])
        cells = [said([m[f"{name}_accuracy"] for m in by_rate[rate]]) for name in names]
        table.add_row(arm, f"{rate:g}", *cells)
    console.print(table)


def wise_ft(seeds: list[int], home: Path, console: Console, picture: Path | None) -> None:
    found: dict[float, list[dict[str, float]]] = {share: [] for share in SHARES}
    for seed in seeds:
        line = [*COMMON, *evals("wise_ft"), "dataset@pretrain.dataset=shapes10", "steps=200", "freeze=none",
                "dataset.shift=input", f"seed={seed}", "optimizer.lr=0.03,0.1", "pretrain.seed=" + str(seed),
                f"sweep.interpolate=[{','.join(map(str, SHARES))}]"]  # fmt: skip
        sweep(line, home / str(seed))
        for share in SHARES:
            (path,) = (home / str(seed)).rglob(f"interpolated-{share:g}/run.json")
            found[share].append(json.loads(path.read_text())["metrics"])
    table = Table(title=f"validation accuracy, {len(seeds)} seeds: mean and standard deviation")
    for column in ("share of the way", "noisy, as fine-tuned on", "without noise, as pretrained on"):
        table.add_column(column)
    for share, metrics in found.items():
        table.add_row(f"{share:g}", *(said([m[f"{name}_accuracy"] for m in metrics]) for name in ("val", "clean")))
    console.print(table)
    if picture is not None:
        _draw(found, picture)


def _draw(found: dict[float, list[dict[str, float]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    means = [[statistics.mean(m[f"{n}_accuracy"] for m in ms) for ms in found.values()] for n in ("clean", "val")]
    axes.plot(*means, marker="o")
    for share, x, y in zip(found, *means, strict=True):
        axes.annotate(f"{share:g}", (x, y), textcoords="offset points", xytext=(6, 4))
    axes.set_xlabel("accuracy without noise, as pretrained on")
    axes.set_ylabel("accuracy with noise, as fine-tuned on")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rates", nargs="+", default=["0.01", "0.03", "0.1"])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as home:
        if options.study == "lp_ft":
            lp_ft(options.seeds, options.rates, Path(home), console)
        else:
            wise_ft(options.seeds, Path(home), console, options.picture)


if __name__ == "__main__":
    main()
