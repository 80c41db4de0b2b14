"""Offline: read logs, replay exactly, choose thresholds with a guarantee.

Light by design: the modules are imported when a name is first used, and only they need numpy and scipy
(``pip install 'bonmini-guard[calibration]'``).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bonmini_guard._lazy import lazy
from bonmini_guard.errors import MissingExtraError

if find_spec("numpy") is None:
    raise MissingExtraError("numpy", "calibration")

if TYPE_CHECKING:
    from bonmini_guard.calibration.choose import calibrate_accelerator as calibrate_accelerator
    from bonmini_guard.calibration.choose import calibrate_guardrail as calibrate_guardrail
    from bonmini_guard.calibration.evidence import Certificate as Certificate
    from bonmini_guard.calibration.evidence import NotEnoughEvidence as NotEnoughEvidence
    from bonmini_guard.calibration.figures import replay_log as replay_log
    from bonmini_guard.calibration.logs import Log as Log
    from bonmini_guard.calibration.logs import load_log as load_log
    from bonmini_guard.calibration.logs import log_of_rows as log_of_rows
    from bonmini_guard.calibration.replay import replay as replay

_NAMES = {
    "choose": "calibrate_accelerator calibrate_guardrail",
    "evidence": "Certificate NotEnoughEvidence",
    "figures": "replay_log",
    "logs": "Log load_log log_of_rows",
    "replay": "replay",
}
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
__all__ = list(_HOMES)
