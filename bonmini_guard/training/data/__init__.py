"""Labelled data of many shapes, as choice rows: converters, and what to know of the rows before training on them.

Nothing here needs more than the core's dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.training.data.converters import FORMATS, ConversionOptions, convert
    from bonmini_guard.training.data.statistics import Statistics, describe

__all__ = ["FORMATS", "ConversionOptions", "Statistics", "convert", "describe"]

_HOMES = {
    "FORMATS": "converters",
    "ConversionOptions": "converters",
    "Statistics": "statistics",
    "convert": "converters",
    "describe": "statistics",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
