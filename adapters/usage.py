"""One bill for several answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def proportional(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole numbers that add up to the total, by cumulative rounding."""
    whole = sum(sizes)
    edges = [round(total * sum(sizes[:position]) / whole) for position in range(len(sizes) + 1)]
    return [high - low for low, high in pairwise(edges)]
