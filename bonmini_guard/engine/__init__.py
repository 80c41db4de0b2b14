"""Effects: one request, what limits, contains and records it, and what generators and scorers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.engine.drawing import draw_seed
    from bonmini_guard.engine.engine import Engine, Observer

__all__ = ["Engine", "Observer", "draw_seed"]

_HOMES = {"Engine": "engine", "Observer": "engine", "draw_seed": "drawing"}

__getattr__, __dir__ = lazy(__name__, _HOMES)
