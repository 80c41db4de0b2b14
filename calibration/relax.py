"""A guard that starts strict and relaxes on its own traffic: rows that it cut short are evidence, too.

A request that stopped under thresholds T shows all that any *laxer* policy of the same schedule would have done with it: that one
stops at the same loop or an earlier one. Only stricter policies are censored. So the thresholds T - c, c >= 0, are tested from
c = 0 on by all rows of one regime, explored or not; T was fixed before these rows came, which makes it a fair start for every risk.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bonmini_guard.calibration.blocks import RAN_UNDER
from bonmini_guard.calibration.choose import calibrated
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence, sealed
from bonmini_guard.calibration.figures import transformed
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.sequence import Request
from bonmini_guard.errors import ConfigurationError, InputError
from bonmini_guard.logs.rows import Regime
from bonmini_guard.policy.profile import ScoreTransform


def relax_guardrail(
    log: Log, *, risk: str = "served_and_bad", alpha: float = 0.05, delta: float = 0.1, calibrations: int = 1
) -> Certificate | NotEnoughEvidence:
    """Certify the thresholds in force, and how far below them one may go, on the traces of one guard.

    The log was read with ``cut=True``, and some rows, picked at random, are labelled. A label that is missing in one of them counts
    as bad where it is needed: laxer thresholds serve other answers than those served, and nobody leaves theirs out by chance. The
    other arguments are those of :func:`~bonmini_guard.calibration.choose.calibrate_guardrail`.

    Raises:
        ConfigurationError: a number or the risk is not usable.
        InputError: the rows do not say what they ran under, or ran under different thresholds; or no row has a label.
    """
    regime, rows = _one_regime(log)
    transform = ScoreTransform(a=regime.transform[0], b=regime.transform[1])
    part = transformed(log.take(rows), transform)
    if not part.asked.any():
        part, _ = part.labelled_set()
        part = replace(part, asked=np.ones(len(part), dtype=bool))
    finite = [threshold for threshold in regime.thresholds if np.isfinite(threshold)]
    if not finite:
        raise InputError(f"{log.source}: the guard never accepted anything, so that there is nothing to relax")
    offsets = tuple(threshold - finite[-1] for threshold in regime.thresholds)
    # So that a score that equals a threshold in force is counted as served at it, whatever rounding makes of the differences.
    start = finite[-1] if len(set(finite)) == 1 else finite[-1] - 4 * float(np.spacing(max(map(abs, finite))))
    shape = regime.schedule, offsets
    asked = Request("guardrail", risk, alpha, delta, *shape, start=start, calibrations=calibrations)
    outcome = calibrated(part, asked, search=False)
    if isinstance(outcome, NotEnoughEvidence):
        return replace(outcome, why=f"the thresholds in force are not certified: {outcome.why}")
    said = {"relaxed_from": list(regime.thresholds), "cut_rows": int((~part.complete).sum())}
    return Certificate(sealed(outcome.profile, said, score_transform=transform), outcome.sentence)


def _one_regime(log: Log) -> tuple[Regime, np.ndarray]:
    """What the rows ran under, and which rows say so."""
    ran_under = log.extra.get(RAN_UNDER, ())
    met = set(ran_under) - {None}
    if not met:
        raise InputError(f"{log.source}: no row says which thresholds it ran under; give the traces of a guard (trace_to=)")
    if len(met) > 1:
        raise InputError(
            f"{log.source}: rows ran under {len(met)} different sets of thresholds, and mixing biases; give the traces of one"
        )
    [regime] = met
    if regime.exit != "loop":
        raise ConfigurationError(f"{log.source}: the guard ran with exit {regime.exit!r}, which is not certified; use exit 'loop'")
    return regime, np.flatnonzero([each is not None for each in ran_under])
