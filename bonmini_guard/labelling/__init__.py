"""Labelling: a page in the browser, its file of events, agreement, and what labels become.

Nothing here is loaded until it is asked for (``pip install 'bonmini-guard[label]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.labelling.agreement import agreement
    from bonmini_guard.labelling.exports import choice_rows, labelled_log
    from bonmini_guard.labelling.items import Plan
    from bonmini_guard.labelling.rows import read_rows
    from bonmini_guard.labelling.session import Session

__all__ = ["Plan", "Session", "agreement", "choice_rows", "labelled_log", "read_rows"]

_HOMES = {
    "Plan": "items",
    "Session": "session",
    "agreement": "agreement",
    "choice_rows": "exports",
    "labelled_log": "exports",
    "read_rows": "rows",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
