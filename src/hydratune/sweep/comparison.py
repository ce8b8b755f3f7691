"""Whether cells of a sweep differ by more than their seeds or folds do, and which strategy wins."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95  # of an interval, two-sided; it knows nothing of how many cells there are
FEWEST = 3  # seeds from which on anything is said
RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """A mean difference, the interval around it where there is one, and what that means in words."""

    difference: float
    interval: tuple[float, float] | None
    words: str

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.difference:+.4f}, {self.words}"
        low, high = self.interval
        return f"{self.difference:+.4f} [{low:+.4f}, {high:+.4f}] {self.words}"


def compared(
    own: Mapping[Any, float], best: Mapping[Any, float], sampling: float | None, overlap: float = 0.0
) -> Comparison:
    """own, best: the value of each seed (and fold), larger is better.

    Over the seeds that both have, pair by pair (a paired t test). Where these are fewer than three and each has three,
    over all that there are (Welch's t test). Where each has one, nothing is known of how seeds differ: `sampling`, the
    standard error of the difference as far as it comes from the size of the validation split, is an indication then.

    overlap: of folds, samples of validation for each one of training. Folds train on the same samples for the most
    part, so that the variance of their mean is not 1/n of theirs but 1/n + overlap: the corrected resampled t test of
    Nadeau and Bengio (2003), and that of repeated folds of Bouckaert and Frank (2004).
    """
    pairs = [own[seed] - best[seed] for seed in own if seed in best]
    if len(pairs) >= FEWEST:
        error = statistics.stdev(pairs) * math.sqrt(1 / len(pairs) + overlap)
        return _tested(statistics.fmean(pairs), error, len(pairs) - 1)
    difference = statistics.fmean(own.values()) - statistics.fmean(best.values())
    if len(own) >= FEWEST and len(best) >= FEWEST:
        return _welch(difference, own, best, overlap)
    if max(len(own), len(best)) > 1:
        return Comparison(difference, None, f"too few {'folds' if overlap else 'seeds'} to tell")
    if not sampling:
        return Comparison(difference, None, "one seed: no noise is known")
    beyond = abs(difference) > statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * sampling
    return Comparison(difference, None, f"one seed: {'beyond' if beyond else 'within'} validation sampling")


def winning(strategies: Mapping[str, Sequence[Mapping[Any, float]]]) -> dict[str, float] | None:
    """The probability of each strategy that its best cell is the best of all; None where the seeds are too few to tell.

    strategies: of each, its cells: the value of each seed (and fold), larger is better. These are drawn anew with
    replacement, the same for all where all have the same, else by cell (bootstrap; Efron 1979). The best cell of each
    strategy is chosen in every draw again, as it was in the sweep. Those that are equal in a draw share it. Folds train
    on the same samples for the most part: with folds alone it is surer than it should be.
    """
    import numpy as np

    cells = [(name, values) for name, own in strategies.items() for values in own if len(values) >= FEWEST]
    if {name for name, _ in cells} != set(strategies):
        return None
    rng = np.random.default_rng(0)
    seeds = sorted(cells[0][1])
    shared = all(sorted(values) == seeds for _, values in cells)
    draws = rng.integers(0, len(seeds), (RESAMPLES, len(seeds)))
    best = {name: np.full(RESAMPLES, -np.inf) for name in strategies}
    for name, values in cells:
        own = np.array([values[seed] for seed in sorted(values)])
        drawn = draws if shared else rng.integers(0, len(own), (RESAMPLES, len(own)))
        best[name] = np.maximum(best[name], own[drawn].mean(1))
    table = np.stack(list(best.values()))
    first = table >= table.max(0) - 1e-12
    return dict(zip(best, (first / first.sum(0)).mean(1).tolist(), strict=True))


def _welch(difference: float, own: Mapping[Any, float], best: Mapping[Any, float], overlap: float) -> Comparison:
    """Degrees of freedom after Welch (1947), rounded down, as for a table."""
    squares = [statistics.variance(values.values()) * (1 / len(values) + overlap) for values in (own, best)]
    total = sum(squares)
    if not total:
        return _tested(difference, 0.0, 1)
    sizes = (len(own), len(best))
    freedom = 1 / sum((square / total) ** 2 / (size - 1) for square, size in zip(squares, sizes, strict=True))
    return _tested(difference, math.sqrt(total), math.floor(freedom + 1e-9))


def _tested(difference: float, error: float, freedom: int) -> Comparison:
    reach = quantile(freedom) * error
    low, high = difference - reach, difference + reach
    words = "worse" if high < 0 else "better" if low > 0 else "within the noise"
    return Comparison(difference, (low, high), words)


def quantile(freedom: int) -> float:
    """What |t| stays below with a probability of 0.95, by bisection."""
    low, high = 0.0, 16.0  # the largest, of one degree of freedom, is 12.7
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability that |T| <= t: exact sums for whole degrees of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 (odd) and 26.7.4 (even).
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd, cosine = freedom % 2, math.cos(angle)
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
