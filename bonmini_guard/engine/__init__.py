"""Effects: one request, what limits, contains and records it, and what generators and scorers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.engine.drawing import draw_seed as draw_seed
    from bonmini_guard.engine.engine import Engine as Engine
    from bonmini_guard.engine.engine import Observer as Observer

__getattr__, __dir__, _HOMES = lazy(__name__, {"drawing": "draw_seed", "engine": "Engine Observer"})
__all__ = list(_HOMES)
