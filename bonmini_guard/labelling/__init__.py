"""Labelling: a page in the browser, its file of events, agreement, and what labels become.

Nothing here is loaded until it is asked for (``pip install 'bonmini-guard[label]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy

if TYPE_CHECKING:
    from bonmini_guard.labelling.agreement import agreement as agreement
    from bonmini_guard.labelling.exports import choice_rows as choice_rows
    from bonmini_guard.labelling.exports import labelled_log as labelled_log
    from bonmini_guard.labelling.items import Plan as Plan
    from bonmini_guard.labelling.rows import read_rows as read_rows
    from bonmini_guard.labelling.session import Session as Session

_NAMES = {
    "agreement": "agreement",
    "exports": "choice_rows labelled_log",
    "items": "Plan",
    "rows": "read_rows",
    "session": "Session",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
