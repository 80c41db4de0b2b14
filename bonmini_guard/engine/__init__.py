"""Effects: one request, what limits, contains and records it, and what generators and scorers are."""

from __future__ import annotations

from bonmini_guard._lazy import lazy

#: Once this was one module: its names are found here still.
__getattr__, __dir__, _HOMES = lazy(__name__, {"drawing": "draw_seed", "engine": "Engine Observer"})
__all__ = list(_HOMES)
