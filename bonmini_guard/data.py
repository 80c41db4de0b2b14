"""The old place of :mod:`bonmini_guard.training.data`."""

from bonmini_guard._lazy import lazy
from bonmini_guard.training.data import __all__

_HOMES = dict.fromkeys(__all__, ".training.data")

__getattr__, __dir__ = lazy(__name__, _HOMES)
