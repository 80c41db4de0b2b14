"""Whether a guard's traffic is still that of its calibration: a watch over its own traces, right for any number of looks."""

from __future__ import annotations

import logging
from pathlib import Path

from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.logs.trace_files import trace_files
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.runnables.conduct import Guard

logger = logging.getLogger(__name__)


def p_values(guard: Guard) -> dict[str, float]:
    """By question; none without a profile and traces in files, and before there are any. The state lies beside the traces."""
    profile, traces = guard.options["profile"], guard.options["trace_to"]
    if not isinstance(profile, str) or not isinstance(traces, str) or not (files := trace_files(traces)):
        return {}
    try:
        from bonmini_guard.calibration.traces import read_traces
        from bonmini_guard.calibration.watch import digest_of, watching

        loaded = GuardProfile.load(profile)
        state = Path(traces).with_suffix(f".{digest_of(loaded)[:8]}.drift")
        with watching(state, loaded) as watch:
            found = watch.look(read_traces(files, loaded, memory=watch.memory))
    except (BonMiniGuardError, ImportError, OSError) as error:  # no reference, no rows yet, another worker's turn, no SciPy
        logger.info("no look at the drift of %s: %s", traces, error)
        return {}
    return {finding.test: finding.p_value for finding in found.findings if finding.p_value is not None}
