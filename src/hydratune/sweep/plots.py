"""Pictures of a sweep: a heat map for each pair of swept keys, and the learning curves of all jobs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hydratune.core.markdown import number
from hydratune.sweep.grid import REPLICATES
from hydratune.sweep.ranking import Ranking
from hydratune.sweep.rates import Course, courses


def pictures(ranking: Ranking) -> dict[str, bytes]:
    """Name -> PNG: `lr_x_freeze` and its like, best value over what else varies; and `curves`."""
    keys = [
        k for k in ranking.keys if k not in REPLICATES and len({dict(c.settings).get(k) for c in ranking.cells}) > 1
    ]
    names = {key: short(key, keys) for key in keys}
    found = {f"{names[a]}_x_{names[b]}": _heat_map(ranking, a, b) for a, b in combinations(_ordered(keys), 2)}
    if tried := courses(ranking):
        found["rates"] = _rates(ranking, tried)
    if any(r.status == "interpolated" for r in ranking.rows):
        found["interpolation"] = _interpolation(ranking)
    if any(r.record.history for r in ranking.rows):
        found["curves"] = _curves(ranking)
    return found


def short(key: str, keys: Sequence[str]) -> str:
    """What a key is called in a file's name: its last word, or all of them where another key ends alike."""
    last = key.rpartition(".")[2]
    alike = [k for k in keys if k.rpartition(".")[2] == last]
    return re.sub(r"[^\w.-]", "_", key if len(alike) > 1 else last)


def _plain(words: str) -> str:
    """Dollars would be taken for mathematics."""
    return words.replace("$", r"\$")


def _ordered(keys: Sequence[str]) -> list[str]:
    """Numbers before words, so that the map is lr x freeze and not the other way round."""
    return sorted(keys, key=lambda k: (k == "freeze", k))


def _values(ranking: Ranking, key: str) -> list[str]:
    values = {dict(c.settings).get(key, "") for c in ranking.cells}
    numeric = all(number(v) is not None for v in values)
    return sorted(values, key=(lambda v: number(v) or 0.0) if numeric else str)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if columns == 1 else figure.subplots(1, columns)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _heat_map(ranking: Ranking, across: str, down: str) -> bytes:
    """Mean over seeds; where other keys vary too, the best over those."""
    columns, lines = _values(ranking, across), _values(ranking, down)
    table = [[float("nan")] * len(columns) for _ in lines]
    for cell in reversed(ranking.cells):  # the best comes last and stays
        settings = dict(cell.settings)
        table[lines.index(settings.get(down, ""))][columns.index(settings.get(across, ""))] = cell.mean
    figure, axes = _figure(1.6 + 0.9 * len(columns), 1.4 + 0.5 * len(lines))
    image = axes.imshow(table, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), map(_plain, columns))
    axes.set_yticks(range(len(lines)), map(_plain, lines))
    axes.set_xlabel(_plain(across))
    axes.set_ylabel(_plain(down))
    seen = [v for row in table for v in row if v == v]
    middle = (min(seen) + max(seen)) / 2 if seen else 0.0
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            if value == value:
                color = "white" if value < middle else "black"
                axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label=_plain(ranking.label))
    return _png(figure)


def _curves(ranking: Ranking) -> bytes:
    from matplotlib import colormaps

    figure, axes = _figure(8.0, 4.5)
    strategies = sorted({r.strategy for r in ranking.rows})
    colors = {s: colormaps["tab10"](i % 10) for i, s in enumerate(strategies)}
    named = set()
    for row in ranking.rows:
        history = row.record.history
        if history:
            steps, values = zip(*history, strict=True)
            label = _plain(row.strategy) if row.strategy not in named else None
            named.add(row.strategy)
            axes.plot(steps, values, color=colors[row.strategy], label=label, linewidth=1, alpha=0.7)
    axes.set_xlabel("step")
    axes.set_ylabel(_plain(ranking.label))
    axes.legend(title="freeze", fontsize=8)
    axes.grid(alpha=0.3)
    return _png(figure)


def _rates(ranking: Ranking, tried: Sequence[Course]) -> bytes:
    """Loss and monitor against the rate, a line for each strategy: the best rate, and the last before divergence."""
    from matplotlib import colormaps

    panels = [True, False] if any(course.by_loss for course in tried) else [False]
    figure, axes = _figure(5.6 * len(panels), 4.6, len(panels))
    for place, by_loss in zip(axes if len(panels) > 1 else [axes], panels, strict=True):
        for i, course in enumerate(tried):
            color, best, last, end = colormaps["tab10"](i % 10), course.best, course.last, course.end
            seen = [(p.rate, p.loss if by_loss else p.value) for p in course.points if p.finite]
            known = [(rate, value) for rate, value in seen if math.isfinite(value)]
            label = _plain(course.strategy or "job")
            place.plot([r for r, _ in known], [v for _, v in known], color=color, marker=".", label=label)
            if best is not None:
                place.plot(best.rate, best.loss if by_loss else best.value, "*", color=color, markersize=15)
            if last is not None and end is not None:
                place.axvline(last.rate, color=color, linestyle=":", linewidth=1.2)
            lost = [p.rate for p in course.points if not p.finite]
            # Along the bottom, as they have no value
            place.plot(lost, [0.02 + 0.03 * i] * len(lost), "x", color=color, transform=place.get_xaxis_transform())
        place.set_xscale("log")
        place.set_xlabel("learning rate")
        place.set_ylabel(_plain(f"{ranking.split} loss" if by_loss else ranking.label))
        place.grid(alpha=0.3, which="both")
        if by_loss and (losses := _worth_seeing(tried)):
            low, high = min(losses), max(losses)
            place.set_ylim(low - 0.1 * (high - low or 1), high + 0.15 * (high - low or 1))
    (axes[0] if len(panels) > 1 else axes).legend(title="freeze", fontsize=8)
    figure.supxlabel("star: best rate; dotted: last before divergence; cross: not finite", fontsize=8)
    return _png(figure)


def _worth_seeing(tried: Sequence[Course]) -> list[float]:
    """Losses up to the best rate and at the last before divergence. Those that blow up leave the picture at its top."""
    losses = []
    for course in tried:
        best, last = course.best, course.last
        shown = [p for p in course.points if best is not None and (p.rate <= best.rate or p is last)]
        losses += [p.loss for p in shown if math.isfinite(p.loss)]
    return losses


def _interpolation(ranking: Ranking) -> bytes:
    """Every set's metric on the way from start to end; with two sets the way itself as well (WiSE-FT, figure 1)."""
    rows = sorted(
        (float(r.directory.name.partition("-")[2]), r) for r in ranking.rows if r.status == "interpolated"
    )  # fmt: skip
    sets = [ranking.split, *ranking.others]
    values = {name: [r.record.score(name) or float("nan") for _, r in rows] for name in sets}
    shares = [share for share, _ in rows]
    figure, axes = _figure(10.0 if len(sets) > 1 else 5.5, 4.2, 2 if len(sets) > 1 else 1)
    first = axes[0] if len(sets) > 1 else axes
    for name in sets:
        first.plot(shares, values[name], marker="o", label=_plain(name))
    first.set_xlabel("share of the way from the start of fine-tuning to its end")
    first.set_ylabel(_plain(ranking.monitor))
    first.legend()
    first.grid(alpha=0.3)
    for name in sets[1:]:
        axes[1].plot(values[sets[0]], values[name], marker="o", label=_plain(name))
        for share, x, y in zip(shares, values[sets[0]], values[name], strict=True):
            axes[1].annotate(f"{share:g}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    if len(sets) > 1:
        axes[1].set_xlabel(_plain(ranking.label))
        axes[1].set_ylabel(_plain(ranking.monitor))
        axes[1].legend()
        axes[1].grid(alpha=0.3)
    return _png(figure)


def as_tensor(png: bytes) -> Tensor:
    """[3, H, W] uint8"""
    image = np.array(Image.open(io.BytesIO(png)).convert("RGB"))
    return torch.from_numpy(image).permute(2, 0, 1)
