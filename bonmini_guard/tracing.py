"""The former home of ``PROGRESS``; it lives in :mod:`bonmini_guard.callbacks`."""

from bonmini_guard.callbacks import PROGRESS

__all__ = ["PROGRESS"]
