"""Figures of report.html: SVG that says what is under the pointer, without a network or a library."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from hydratune.core.markdown import number
from hydratune.sweep.grid import REPLICATES
from hydratune.sweep.ranking import Cell, Ranking
from hydratune.sweep.rows import Row

WIDTH, HEIGHT, LEFT, BOTTOM = 880, 380, 64, 44
CELL = (86, 34)  # of a heat map
POINTS = 400  # of a curve, at most: more than there are dots on the screen
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")

STYLE = """
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; display: block; margin: .6rem 0 1.4rem }
polyline { fill: none; stroke-width: 1.3; opacity: .7 } polyline:hover { stroke-width: 3.5; opacity: 1 }
polyline.hit { stroke: transparent; stroke-width: 9; opacity: 1 } .grid { stroke: #e4e4e4 } .axis { stroke: #999 }
#tip { position: fixed; display: none; background: #222; color: #fff; padding: .3rem .6rem; border-radius: 4px; font-size: 12px;
  pointer-events: none; white-space: pre; z-index: 9 }
th { cursor: pointer } th::after { content: "\\2195"; color: #bbb; padding-left: .3em; font-weight: 400 }
th.up::after { content: "\\2191"; color: #333 } th.down::after { content: "\\2193"; color: #333 }
"""  # noqa: E501

SCRIPT = """
const tip = document.body.appendChild(document.createElement('div')); tip.id = 'tip';
document.addEventListener('mousemove', event => {
  const under = event.target.closest('[data-tip]');
  tip.style.display = under ? 'block' : 'none';
  if (!under) return;
  let words = under.dataset.tip;
  if (under.dataset.points) {
    const svg = under.ownerSVGElement, at = new DOMPoint(event.clientX, event.clientY);
    const x = at.matrixTransform(svg.getScreenCTM().inverse()).x;
    const near = JSON.parse(under.dataset.points).reduce((a, b) => Math.abs(a[0] - x) < Math.abs(b[0] - x) ? a : b);
    words += '\\nstep ' + near[1] + ': ' + near[2];
  }
  tip.textContent = words;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.min(event.clientX + 14, innerWidth - box.width - 8) + 'px';
  tip.style.top = Math.min(event.clientY + 14, innerHeight - box.height - 8) + 'px';
});
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const table = head.closest('table'), place = [...head.parentNode.children].indexOf(head);
  const down = head.classList.contains('up'), rows = [...table.querySelectorAll('tr')].slice(1);
  for (const other of table.querySelectorAll('th')) other.className = '';
  head.className = down ? 'down' : 'up';
  const value = row => row.children[place]?.textContent ?? '', figure = text => text === '' ? NaN : Number(text);
  rows.sort((a, b) => {
    const [x, y] = [figure(value(a)), figure(value(b))];
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    const order = isNaN(x) ? value(a).localeCompare(value(b)) : x - y;
    return down ? -order : order;
  });
  rows.forEach(row => row.parentNode.appendChild(row));
});
"""


def figures(ranking: Ranking) -> list[str]:
    """A heat map for each pair of swept keys, and all learning curves."""
    varied = {k for k in ranking.keys if len({dict(c.settings).get(k) for c in ranking.cells}) > 1}
    keys = [k for k in ranking.keys if k in varied.difference(REPLICATES)]
    ordered = sorted(keys, key=lambda k: (k == "freeze", k))
    found = [_heat_map(ranking, across, down) for across, down in combinations(ordered, 2)]
    curves = [row for row in ranking.rows if row.record.history]
    return [*found, *([_curves(ranking, curves)] if curves else [])]


def _said(words: str) -> str:
    return html.escape(words, quote=True)


def _text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{_said(words)}</text>'


def _svg(width: float, height: float, name: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="{_said(name)}">'
    return head + "\n".join(parts) + "</svg>"


def _heat_map(ranking: Ranking, across: str, down: str) -> str:
    """Mean over seeds; where other keys vary too, the best over those."""
    best: dict[tuple[str, str], Cell] = {}
    for cell in reversed(ranking.cells):  # the best comes last and stays
        settings = dict(cell.settings)
        best[settings.get(across, ""), settings.get(down, "")] = cell
    columns, lines = (_sorted({pair[i] for pair in best}) for i in (0, 1))
    left = 16 + 7 * max(len(line) for line in [*lines, ""])
    low, high = min(c.mean for c in best.values()), max(c.mean for c in best.values())
    parts = []
    for (x, y), cell in best.items():
        share = (cell.mean - low) / (high - low) if high > low else 1.0
        at = left + columns.index(x) * CELL[0], 8 + lines.index(y) * CELL[1]
        spread = f" +- {cell.deviation:.4f}" if cell.deviation == cell.deviation else ""
        ink = "#111" if share > 0.6 else "#fff"
        words = (
            "\n".join(f"{k}={v}" for k, v in cell.settings)
            + f"\n{cell.mean:.4f}{spread}, {len(cell.rows)} {ranking.over}"
        )
        parts.append(
            f'<g data-tip="{_said(words)}"><rect x="{at[0]}" y="{at[1]}" width="{CELL[0] - 2}" height="{CELL[1] - 2}" '
            f'fill="{_viridis(share)}"/>'
            + _text(at[0] + CELL[0] / 2, at[1] + 21, f"{cell.mean:.3f}", more=f' fill="{ink}"')
            + "</g>"
        )
    bottom = 8 + len(lines) * CELL[1]
    parts += [_text(left - 8, 8 + i * CELL[1] + 21, line, "end") for i, line in enumerate(lines)]
    parts += [_text(left + (i + 0.5) * CELL[0], bottom + 16, column) for i, column in enumerate(columns)]
    parts.append(_text(left + len(columns) * CELL[0] / 2, bottom + 34, f"{across}: {ranking.label} by {down}"))
    return _svg(max(left + len(columns) * CELL[0] + 8, 320), bottom + 42, f"{across} x {down}", parts)


def _sorted(values: set[str]) -> list[str]:
    numeric = all(number(v) is not None for v in values)
    return sorted(values, key=(lambda v: number(v) or 0.0) if numeric else str)


def _viridis(share: float) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps["viridis"](share)))


def _curve(row: Row, placed: Callable[[float, float], tuple[float, float]], colours: Mapping[str, str]) -> list[str]:
    """The line that is seen, and a wider one that the pointer meets."""
    seen = [(s, v) for s, v in row.record.history if math.isfinite(v)]
    seen = seen[:: max(math.ceil(len(seen) / POINTS), 1)]
    if not seen:
        return []
    places = [placed(step, value) for step, value in seen]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    told = json.dumps([[round(x, 1), s, round(v, 4)] for (x, _), (s, v) in zip(places, seen, strict=True)])
    dot = f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="2" fill="{colours[row.strategy]}"/>'
    return [
        dot if len(seen) == 1 else f'<polyline points="{line}" stroke="{colours[row.strategy]}"/>',
        f'<polyline class=hit points="{line}" data-tip="{_said(row.directory.name)}" data-points="{_said(told)}"/>',
    ]


def _curves(ranking: Ranking, rows: Sequence[Row]) -> str:
    strategies = sorted({row.strategy for row in rows})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(strategies)}
    points = [(s, v) for row in rows for s, v in row.record.history if math.isfinite(v)] or [(0.0, 0.0)]
    last = max(max(s for s, _ in points), 1)
    low, high = min(v for _, v in points), max(v for _, v in points)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    wide, tall = WIDTH - LEFT - 150, HEIGHT - BOTTOM - 12

    def placed(step: float, value: float) -> tuple[float, float]:
        return LEFT + wide * step / last, 12 + tall * (high - value) / (high - low)

    parts = []
    for i in range(6):
        step, value = last * i / 5, low + (high - low) * i / 5
        x, y = placed(step, value)
        parts += [f'<line class=grid x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}"/>']
        parts += [_text(LEFT - 6, y + 4, f"{value:.4g}", "end"), _text(x, 12 + tall + 16, f"{step:.4g}")]
    parts.append(f'<line class=axis x1="{LEFT}" x2="{LEFT + wide}" y1="{12 + tall}" y2="{12 + tall}"/>')
    for row in reversed(rows):  # the best lies on top
        parts += _curve(row, placed, colours)
    for i, name in enumerate(strategies):
        y = 24 + 18 * i
        parts.append(f'<rect x="{WIDTH - 140}" y="{y - 9}" width="12" height="10" fill="{colours[name]}"/>')
        parts.append(_text(WIDTH - 122, y, name or "job", "start"))
    parts.append(_text(LEFT + wide / 2, HEIGHT - 8, f"step; {ranking.label}, by freeze"))
    return _svg(WIDTH, HEIGHT, "learning curves", parts)
