"""Is the calibration still valid? One look at later traffic, with a stated false-alarm rate.

Up to five questions, each an exact or conservative test at an equal share of the rate (Bonferroni). Fingerprints that differ are
drift without a test. For looks that come again and again: :mod:`bonmini_guard.calibration.watch`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bonmini_guard.calibration.certify import lower_limit
from bonmini_guard.calibration.evidence import check_share, percent
from bonmini_guard.calibration.findings import FALSE_ALARM_RATE, TODO, Drift, Finding, LabelsWanted, at_least
from bonmini_guard.calibration.martingale import Process, Ranks
from bonmini_guard.calibration.promise import Tested, against, labels_wanted, reference_share, said
from bonmini_guard.calibration.slices import Slices
from bonmini_guard.calibration.traces import Trace, Traces
from bonmini_guard.engine.fingerprints import compare, is_description
from bonmini_guard.errors import ConfigurationError, ProfileError, needing
from bonmini_guard.policy.profile import GuardProfile

with needing("calibration"):
    from scipy.stats import fisher_exact, ks_2samp

#: The tests' names for decisions.
QUESTION = {"abstained": "abstentions", "best_effort": "best_efforts"}
#: Breaks ties between equal scores, and picks rows to label.
SEED = "0"


def find_drift(
    profile: GuardProfile,
    traces: Traces,
    *,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    looks: int = 1,
    key: str | None = None,
    also: Sequence[Finding] = (),
) -> Drift:
    """Compare traces with the profile.

    Args:
        profile: with a reference, as ``calibrate`` writes it.
        traces: later requests, in the order they came.
        key: the row key whose slices are watched; the traces were read with it.
        false_alarm_rate: the chance of saying drift when there is none, in (0, 1), at any of the looks.
        looks: how many such looks are planned; each is taken at an equal share of the rate (Bonferroni).
        also: findings that were made elsewhere, such as :func:`same_scorer`.

    Raises:
        ProfileError: the profile has no reference.
        ConfigurationError: the rate or the number of looks is not usable.
    """
    check_share("false_alarm_rate", false_alarm_rate)
    if looks < 1:
        raise ConfigurationError(f"looks is {looks}: give the number of looks that are planned, 1 or more")
    check_reference(profile)
    tests = _tests(profile, traces, key)
    level = false_alarm_rate / looks / len(tests) if tests else 0.0
    findings = (*also, *same_marks(profile, traces.fingerprints), *(test(level) for test in tests))
    holds = "for this one look" if looks == 1 else f"for {looks} such looks together"
    tested = None if profile.alpha is None or not level else _tested(profile, traces, level)[0]
    wanted = None if tested is None else partial(labels_wanted, profile, traces.events, tested, SEED)
    return conclusion(findings, (false_alarm_rate, holds, len(traces.traces)), traces.left_out, wanted)


def check_reference(profile: GuardProfile) -> None:
    """Raise ProfileError if the profile has nothing to compare with."""
    if not profile.reference:
        raise ProfileError("the profile has no reference scores to compare with; calibrate anew to get them")


def conclusion(
    findings: tuple[Finding, ...],
    head: tuple[float, str, int],
    left_out: Counter[str],
    wanted: Callable[[], LabelsWanted | None] | None,
) -> Drift:
    """All answers: the findings, beside the rate, what it holds for and how many traces were seen; and labels to ask for."""
    found = any(finding.found for finding in findings)
    why = {reason: number for reason, number in left_out.items() if number}
    return Drift(found, *head, findings, why, TODO if found else "", None if found or wanted is None else wanted())


def _tests(profile: GuardProfile, traces: Traces, key: str | None) -> list[Callable[[float], Finding]]:
    reference, requests = np.asarray(profile.reference), traces.traces
    scored = [trace for trace in requests if np.isfinite(trace.best)]
    guarded, share = traces.decided, reference_share(profile)
    tests: list[Callable[[float], Finding]] = []
    if scored:
        best = np.array([trace.best for trace in scored])
        tests += [partial(two_samples, reference, best), partial(over_time, profile.reference, scored)]
    if guarded and share is not None:
        tests.append(partial(decisions, share, guarded))
    if profile.alpha is not None and any(against(trace, str(profile.risk)) is not None for trace in traces.judged):
        tests.append(partial(labels, profile, traces))
    if key is not None:
        tests.append(partial(_slices, profile, key, requests))
    return tests


def two_samples(reference: Any, best: Any, level: float) -> Finding:
    """Kolmogorov-Smirnov, two-sided; exact for samples up to 10,000, conservative with ties (scipy.stats.ks_2samp)."""
    p_value = float(ks_2samp(reference, best).pvalue)
    before, after = (np.quantile(values, [0.1, 0.5, 0.9]) for values in (reference, best))
    moved = ", ".join(f"{name} {a:.3g} -> {b:.3g}" for name, a, b in zip(("10 %", "median", "90 %"), before, after, strict=True))
    return Finding(
        "first_loop_scores", p_value <= level, p_value, level, f"best scores of first loops, calibration -> now: {moved}"
    )


def over_time(reference: Sequence[float], scored: Sequence[Trace], level: float) -> Finding:
    """The conformal martingale of :class:`~bonmini_guard.calibration.martingale.Ranks`."""
    ranks = Ranks(level, reference, SEED)
    for trace in scored:
        ranks.add(trace.best, trace.id)
    return dated(ranks)


def dated(ranks: Process) -> Finding:
    """What a martingale of scores says, and since when."""
    what = "no point in time from which scores differ"
    if ranks.crossed is not None:
        what = f"scores began to differ at the latest at trace {ranks.crossed:,} of {ranks.steps:,}"
    return Finding("first_loop_scores_over_time", ranks.crossed is not None, ranks.p_value, ranks.level, what)


def decisions(share: tuple[str, int, int], guarded: Sequence[Trace], level: float) -> Finding:
    """Fisher's exact test of the share of one decision: now, against its count in the certify split."""
    decision, count, units = share
    now = sum(trace.decision == decision for trace in guarded)
    p_value = float(fisher_exact([[count, units - count], [now, len(guarded) - now]]).pvalue)
    reasons = Counter(trace.reason for trace in guarded if trace.decision == decision and trace.reason)
    by = f" ({', '.join(f'{number} {reason}' for reason, number in reasons.most_common())})" if reasons else ""
    what = f"{decision}, calibration -> now: {percent(count / units)} -> {percent(now / len(guarded))} of requests{by}"
    return Finding(QUESTION[decision], p_value <= level, p_value, level, what)


def labels(profile: GuardProfile, traces: Traces, level: float) -> Finding:
    """Whether the labels refute the promise: exact binomial, at least so many bad ones if the risk were alpha."""
    tested, each = _tested(profile, traces, level)
    p_value = float(at_least(tested.bad, tested.known, tested.promised)) if tested.promised < 1 else 1.0
    return Finding("labels", p_value <= each, p_value, each, said(profile, tested))


def _tested(profile: GuardProfile, traces: Traces, level: float) -> tuple[Tested, float]:
    """The labels, and the level left for them.

    Bad and served is bad among served times served: for ``served_and_bad`` the share served is taken at its lower limit
    (Clopper and Pearson), and half the level goes to each.
    """
    counted = [verdict for trace in traces.judged if (verdict := against(trace, str(profile.risk))) is not None]
    guarded = traces.decided
    served, promised = sum(trace.decision == "accepted" for trace in guarded), float(profile.alpha or 0.0)
    if profile.risk == "served_and_bad":
        level /= 2
        limit = lower_limit(served, len(guarded), level)
        promised = promised / limit if limit > promised else 1.0
    share = served / len(guarded) if served else 1.0
    return Tested(sum(counted), len(counted), promised, share, lambda bad, units: at_least(bad, units, promised) <= level), level


def _slices(profile: GuardProfile, key: str, requests: Sequence[Trace], level: float) -> Finding:
    slices, share = Slices(level, key, profile.reference, SEED), reference_share(profile)
    for trace in requests:
        slices.add(trace, None if share is None else share[0])
    return slices.finding()


def same_marks(profile: GuardProfile, met_marks: dict[str, Counter[str]]) -> list[Finding]:
    """Whether the traces' ``scored_by`` and ``generated_by`` are the profile's."""
    findings = []
    for name, all_met in met_marks.items():
        expected, met = profile.fingerprints.get(name), all_met
        if expected is None or not met:
            continue
        if name == "generator" and not is_description(expected):
            # Its own form is that of schema 1, unless somebody wrote a generator of his own.
            met = Counter({mark: number for mark, number in met.items() if not is_description(mark)})
        compared = {mark: compare(expected, mark).differing for mark in met}
        others = sum(number for mark, number in met.items() if compared[mark])
        how = next((", ".join(differing[:2]) for differing in compared.values() if differing), "")
        what = f"{name}: {others} of {sum(met.values())} traces come from another one than the profile's: {how}"
        if not others:
            what = f"{name}: the same as in calibration"
        if not met:
            what = f"{name}: the profile is of an earlier version, and does not say enough to compare; calibrate anew"
        findings.append(Finding("fingerprints", others > 0, None, 0.0, what))
    return findings


def same_scorer(profile: GuardProfile, scorer: Any) -> Finding:
    """Whether a scorer is the profile's, by its fingerprint: of weights, or, of a remote one, the scores of fixed probe pairs.

    ProfileError if the profile does not say which scorer it was calibrated with.
    """
    from bonmini_guard.runnables.settings import check_fingerprints

    if profile.fingerprints.get("reward_model") is None:
        raise ProfileError(
            "the profile does not say which reward model scored its log: score it with 'bonmini-guard score', and calibrate anew"
        )
    try:
        check_fingerprints(profile, {"reward_model": scorer}, strict=True)
    except ProfileError as error:
        return Finding("fingerprints", True, None, 0.0, str(error).split(";")[0])
    return Finding("fingerprints", False, None, 0.0, "the reward model given is the one of calibration")
