"""Labelled data of many shapes, as choice rows: converters, and what to know of the rows before training on them.

Nothing here needs more than the core's dependencies.
"""

from bonmini_guard.training.data.converters import FORMATS, ConversionOptions, convert
from bonmini_guard.training.data.statistics import Statistics, describe

__all__ = ["FORMATS", "ConversionOptions", "Statistics", "convert", "describe"]
