"""Percentiles by nearest rank, upwards: the same for figures, plots and comparisons."""

import math
from collections.abc import Sequence

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Returns the exact percentile by nearest rank, or None of nothing."""
    if not values:
        return None
    index = rank(len(values), percent) - 1
    return rounded(float(np.partition(values, index)[index]))


def rank(num: int, percent: float) -> int:
    """Returns which of rising values is the percentile; 1 is the first.

    At least `percent` of the values are no greater: the rank is never rounded down.
    """
    return max(1, math.ceil(round(num * percent / 100, 6)))  # a product may end in ...0000001


def rounded(value: float) -> float | None:
    """Returns a figure as it is printed; None if there is none."""
    return round(value, 4) if math.isfinite(value) else None
