"""Is the calibration still valid? Later traffic against what the profile remembers, with a stated false-alarm rate.

Up to five questions, each an exact or conservative test at an equal share of the rate (Bonferroni): do first-loop best scores
come from where the reference came from, at once (two samples) or from some point on (martingale); are abstentions as frequent;
do labelled answers keep the promise. Fingerprints that differ are drift without a test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bonmini_guard.calibration.evidence import check_share, percent
from bonmini_guard.calibration.martingale import conformal_p_values, jumper_capital
from bonmini_guard.calibration.traces import Trace, Traces, decided
from bonmini_guard.errors import MissingExtraError, ProfileError
from bonmini_guard.profile import GuardProfile

try:
    from scipy.special import betaincinv
    from scipy.stats import fisher_exact, ks_2samp
except ImportError as error:
    raise MissingExtraError("scipy", "calibration") from error

FALSE_ALARM_RATE = 0.01
TODO = (
    "the profile's promise no longer covers this traffic: calibrate anew on recent complete rows (the guard's explore=0.02 "
    "collects them), and until then treat its figures as unproven"
)


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        test: first_loop_scores, first_loop_scores_over_time, abstentions, best_efforts, labels or fingerprints.
        found: whether it says drift.
        p_value: None for fingerprints, and for labels, which compare a confidence limit with the promise.
        level: the p-value at which it says so.
        what: the figures, in a sentence.
    """

    test: str
    found: bool
    p_value: float | None
    level: float
    what: str


@dataclass(frozen=True)
class Drift:
    """All answers.

    Attributes:
        drift: whether any says drift.
        false_alarm_rate: the chance that one does although nothing changed, at most.
        traces: how many were looked at.
        findings: all of them.
        left_out: rows not looked at, and why.
        todo: what to do; empty without drift.
    """

    drift: bool
    false_alarm_rate: float
    traces: int
    findings: tuple[Finding, ...]
    left_out: dict[str, int]
    todo: str

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


def find_drift(profile: GuardProfile, traces: Traces, *, false_alarm_rate: float = FALSE_ALARM_RATE, seed: int = 0) -> Drift:
    """Compare traces with the profile's reference and evidence.

    Args:
        profile: with a reference, as ``calibrate`` writes it.
        traces: later requests, in the order they came.
        false_alarm_rate: the chance of saying drift when there is none, in (0, 1); it holds for the one look taken here.
        seed: breaks ties between equal scores.

    Raises:
        ProfileError: the profile has no reference.
        ConfigurationError: the rate is not usable.
    """
    check_share("false_alarm_rate", false_alarm_rate)
    if not profile.reference:
        raise ProfileError("the profile has no reference scores to compare with; calibrate anew to get them")
    tests = _tests(profile, traces.traces, np.random.default_rng(seed))
    level = false_alarm_rate / len(tests)
    findings = (*_fingerprints(profile, traces), *(test(level) for test in tests))
    found = any(finding.found for finding in findings)
    left_out = {reason: number for reason, number in traces.left_out.items() if number}
    return Drift(found, false_alarm_rate, len(traces.traces), findings, left_out, TODO if found else "")


def _tests(profile: GuardProfile, traces: list[Trace], generator: np.random.Generator) -> list[Callable[[float], Finding]]:
    reference = np.asarray(profile.reference)
    best = np.array([trace.best for trace in traces])
    best = best[np.isfinite(best)]
    guarded = list(decided(traces))
    tests: list[Callable[[float], Finding]] = []
    if best.size:
        tests += [lambda level: two_samples(reference, best, level), lambda level: over_time(reference, best, level, generator)]
    decision = "abstained" if profile.mode == "guardrail" else "best_effort"
    if guarded and {decision, "requests"} <= profile.evidence.get("first_of_groups", profile.evidence).keys():
        tests.append(lambda level: decisions(profile, guarded, decision, level))
    if profile.alpha is not None and any(trace.label is not None for trace in guarded):
        tests.append(lambda level: labels(profile, guarded, level))
    return tests


def two_samples(reference: Any, best: Any, level: float) -> Finding:
    """Kolmogorov-Smirnov, two-sided; exact for samples up to 10,000, conservative with ties (scipy.stats.ks_2samp)."""
    p_value = float(ks_2samp(reference, best).pvalue)
    before, after = (np.quantile(values, [0.1, 0.5, 0.9]) for values in (reference, best))
    moved = ", ".join(f"{name} {a:.3g} -> {b:.3g}" for name, a, b in zip(("10 %", "median", "90 %"), before, after, strict=True))
    return Finding(
        "first_loop_scores", p_value <= level, p_value, level, f"best scores of first loops, calibration -> now: {moved}"
    )


def over_time(reference: Any, best: Any, level: float, generator: np.random.Generator) -> Finding:
    """The conformal martingale of :mod:`bonmini_guard.calibration.martingale`: ``p = 1 / largest capital``."""
    capital = jumper_capital(conformal_p_values(reference.tolist(), best.tolist(), generator))
    p_value = math.exp(-max(0.0, float(capital.max())))
    crossed = np.flatnonzero(capital >= -math.log(level))
    what = "no point in time from which scores differ"
    if crossed.size:
        what = f"scores began to differ at the latest at trace {int(crossed[0]) + 1} of {best.size}"
    return Finding("first_loop_scores_over_time", bool(crossed.size), p_value, level, what)


def decisions(profile: GuardProfile, guarded: list[Trace], decision: str, level: float) -> Finding:
    """Fisher's exact test of the share of one decision: now, against its expectation on the certify split.

    The expectation varies less than a count of decisions would, so that taking it for one is conservative.
    """
    # Of later traffic one request of each group is looked at, and so of the certify split. Older profiles have all of its rows.
    before = profile.evidence.get("first_of_groups", profile.evidence)
    units = int(before.get("units", before["requests"]))
    share = float(before[decision]) / float(before["requests"])
    count = round(share * units)
    now = sum(trace.decision == decision for trace in guarded)
    p_value = float(fisher_exact([[count, units - count], [now, len(guarded) - now]]).pvalue)
    reasons = Counter(trace.reason for trace in guarded if trace.decision == decision and trace.reason)
    by = f" ({', '.join(f'{number} {reason}' for reason, number in reasons.most_common())})" if reasons else ""
    what = f"{decision}, calibration -> now: {percent(share)} -> {percent(now / len(guarded))} of requests{by}"
    name = "abstentions" if decision == "abstained" else "best_efforts"
    return Finding(name, p_value <= level, p_value, level, what)


def labels(profile: GuardProfile, guarded: list[Trace], level: float) -> Finding:
    """Whether the labelled answers refute the promise: an exact lower limit of the risk lies above alpha.

    Clopper-Pearson lower limits; ``served_and_bad`` multiplies those of bad among served and of served, at half the level each.
    For ``false_acceptance``, whose denominator needs labels of abstentions, the promise itself cannot be tested: served answers
    are compared with the bad-among-served rate of the certify split (Fisher's exact test).
    """
    served = [trace for trace in guarded if trace.decision == "accepted"]
    known = [trace.label for trace in served if trace.label is not None]
    bad, alpha = sum(not label for label in known), float(profile.alpha or 0.0)
    seen = f"{bad} of {len(known)} labelled answers are not acceptable"
    if profile.risk == "bad_among_served":
        limit = lower_limit(bad, len(known), level)
    elif profile.risk == "served_and_bad":
        limit = lower_limit(bad, len(known), level / 2) * lower_limit(len(served), len(guarded), level / 2)
    else:
        return _against_certify(profile, bad, len(known), level, seen)
    what = f"{seen}: the risk {profile.risk} is at least {percent(limit)}, promised at most {percent(alpha)}"
    return Finding("labels", limit > alpha, None, level, what)


def _against_certify(profile: GuardProfile, bad: int, known: int, level: float, seen: str) -> Finding:
    before, served = (round(float(profile.evidence[key])) for key in ("false_acceptances", "served"))
    p_value = float(fisher_exact([[bad, known - bad], [before, served - before]], alternative="greater").pvalue)
    what = f"{seen}; in calibration about {before} of {served} were not"
    return Finding("labels", p_value <= level, p_value, level, what)


def lower_limit(ones: int, units: int, delta: float) -> float:
    """Clopper-Pearson lower limit: ``beta.ppf(delta, k, n - k + 1)``; 0 if k = 0."""
    return 0.0 if ones == 0 else float(betaincinv(ones, units - ones + 1, delta))


def _fingerprints(profile: GuardProfile, traces: Traces) -> list[Finding]:
    findings = []
    for name, met in traces.fingerprints.items():
        expected = profile.fingerprints.get(name)
        if expected is None or not met:
            continue
        others = sum(number for mark, number in met.items() if mark != expected)
        what = f"{name}: {others} of {sum(met.values())} traces come from another one than the profile's ({expected})"
        if not others:
            what = f"{name}: the same as in calibration"
        findings.append(Finding("fingerprints", others > 0, None, 0.0, what))
    return findings
