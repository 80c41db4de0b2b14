"""No promise without its test: before one is printed beside a log, the log is asked whether it refutes it."""

from __future__ import annotations

import numpy as np
from scipy.special import bdtr

from bonmini_guard.calibration.certify import counts_of, net_loss
from bonmini_guard.calibration.evidence import percent, profile_fingerprints, seal_holds
from bonmini_guard.calibration.figures import transformed
from bonmini_guard.calibration.findings import at_least
from bonmini_guard.calibration.logs import Log
from bonmini_guard.calibration.orders import labelled_units, one_a_unit
from bonmini_guard.calibration.paths import Steps, counts_to_refute
from bonmini_guard.engine.fingerprints import compare
from bonmini_guard.policy.profile import GuardProfile

#: The chance that a true promise is called refuted, at most.
LEVEL = 0.05
EDITED = "This profile was edited after it was certified: its promise is of other thresholds, and nothing is promised of these."

OTHER_SCORES = (
    "This log was scored by another reward model than the profile's, of whose scores neither its thresholds nor its promise are: "
    "give a log that the profile's model scored ('bonmini-guard score'), or calibrate anew on this one."
)


def standing(log: Log, profile: GuardProfile) -> tuple[str | None, bool]:
    """What must be said first about a profile's promise beside this log, None where nothing must; and whether the log refutes it.

    That is a one-sided exact test at 5 % on its labelled rows, one a unit, each in its one order; or of the order of arrival.
    """
    refuted = refutation(log, profile) or order_refuted(log, profile)
    expected, met = (marks.get("reward_model") for marks in (profile.fingerprints, profile_fingerprints(log)))
    other = OTHER_SCORES if expected and met and compare(expected, met).differing else None
    said = other, refuted or (EDITED if seal_holds(profile) is False else None)
    return " ".join(filter(None, said)) or None, refuted is not None


def refutation(log: Log, profile: GuardProfile) -> str | None:
    """The sentence that says that this log refutes the profile's promise; None if it does not, or nothing was promised."""
    level = profile.alpha if profile.mode == "guardrail" else profile.epsilon
    if level is None or profile.delta is None or not np.any(np.isfinite(log.labels)) or profile.hopeless is not None:
        return None
    _, part, missing = labelled_units(transformed(log, profile.score_transform))
    widths = profile.in_flight or (1,)
    for width in widths:
        counts = counts_to_refute(part, profile.policy(), missing, width)
        if said := _said(profile, counts, level, LEVEL / len(widths)):
            return said if len(widths) == 1 else f"{said} (With {width} draws in flight.)"
    return None


def order_refuted(log: Log, profile: GuardProfile) -> str | None:
    """The sentence that says that draws do not arrive as launched, whatever they score, where a profile took it that they do.

    In how many units short answers score higher than long ones, by the sign of Spearman's correlation, is tested against one half:
    exactly, two-sided, at 5 %. One at a time they do.
    """
    if max(profile.in_flight or profile.schedule) == 1 or profile.evidence.get("arrivals") != "launch order" or log.costs is None:
        return None
    from scipy.stats import rankdata  # which takes longer to import than all else here

    part = one_a_unit(log)
    known = np.isfinite(part.scores) & np.isfinite(took := np.asarray(part.costs))
    ranks = [rankdata(np.where(known, each, np.nan), axis=1, nan_policy="omit") for each in (part.scores, took)]
    above = [each - (known.sum(axis=1, keepdims=True) + 1) / 2 for each in ranks]
    signs = np.nansum(above[0] * above[1], axis=1)
    longer, moved = int(np.sum(signs > 0)), int(np.sum(signs != 0))
    if not moved or 2 * bdtr(min(longer, moved - longer), moved, 0.5) > LEVEL:
        return None
    better, prompts = ("longer", longer) if 2 * longer > moved else ("shorter", moved - longer)
    return (
        f"REFUTED by this log: the profile takes draws to arrive as launched, whatever they score, and here {better} answers score "
        f"higher (of {prompts:,} of {moved:,} prompts; chance at most {percent(LEVEL)}): certify it on a log with times."
    )


def _said(profile: GuardProfile, counts: Steps, level: float, chance: float) -> str | None:
    if profile.mode == "guardrail":
        risk = profile.risk or "served_and_bad"
        (bad,), (among,) = (each.tolist() for each in counts_of(counts, risk))
        what = f"{risk} of at most {percent(level)}"
        p_value = float(at_least(round(bad), round(among), level))
    else:
        bad, among = float(counts.lost[0] - counts.won[0]), float(counts.rows[0])
        what = f"at most {percent(level)} less often acceptable than best-of-{sum(profile.schedule)}"
        p_value = net_loss(float(counts.won[0]), float(counts.lost[0]), int(among), -level, chance)
    if p_value > chance:
        return None
    return (
        f"REFUTED by this log: it promises {what}, and here it is {percent(bad / among)} ({bad:,.0f} of {among:,.0f}; chance "
        f"at most {percent(LEVEL)} if the promise held). Do not rely on this profile for such traffic: calibrate anew."
    )
