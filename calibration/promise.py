"""Labels of later answers against the profile's promise: what each of them says, and which further ones would tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bonmini_guard.calibration.evidence import percent
from bonmini_guard.calibration.findings import LabelsWanted, labels_needed
from bonmini_guard.calibration.logs import Bools, Integers
from bonmini_guard.calibration.martingale import chances
from bonmini_guard.calibration.traces import Trace
from bonmini_guard.errors import ProfileError
from bonmini_guard.policy.profile import GuardProfile


@dataclass(frozen=True)
class Tested:
    """Where the test of a promise stands.

    Attributes:
        bad: how many of the labelled requests, which are ``known``, count against it.
        promised: the share of the bad that the promise allows, on the safe side; 1 or more if nothing can refute it.
        served: the share of requests served, as far as it is known.
        refuted: (N,) whether so many bad of so many labelled would refute it.
    """

    bad: int
    known: int
    promised: float
    served: float
    refuted: Callable[[Integers, Integers], Bools]


def against(trace: Trace, risk: str) -> bool | None:
    """Whether a labelled request counts against the promise; None if it says nothing about it.

    Of the answers served the share of the bad is counted. ``false_acceptance`` is about requests whose selected answer is bad,
    abstentions included, and counts those that were served; only rows of which every answer is labelled tell of both kinds.
    """
    if trace.label is None:
        return None
    if risk == "false_acceptance":
        return trace.decision == "accepted" if trace.whole and not trace.label else None
    return not trace.label if trace.decision == "accepted" else None


def reference_share(profile: GuardProfile) -> tuple[str, int, int] | None:
    """Which decision is watched, and how often it was made in how many requests (one a group) of the certify split; None if unsaid.

    ProfileError if somebody has written something else there than counts.
    """
    decision = "abstained" if profile.mode == "guardrail" else "best_effort"
    # Said where drift's requests are not the units: the first of each group, each of equal prompts, none whose first loop failed.
    before = profile.evidence.get("first_of_groups", profile.evidence)
    try:
        if not {decision, "requests"} <= before.keys():
            return None
        # Of a log labelled in part the rows without the label that was needed made no decision that counts.
        counted = float(before.get("counted", before["requests"]))
        units = int(min(before.get("units", counted), counted))
        count = round(min(1.0, float(before[decision]) / counted) * units)
        if not 0 <= count <= units or not units:
            raise ValueError(count)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ProfileError(f"evidence: its counts of requests and of {decision} are none ({error}); calibrate anew") from error
    return decision, count, units


def said(profile: GuardProfile, tested: Tested) -> str:
    """The figures in a sentence."""
    what = "labelled bad answers were served" if profile.risk == "false_acceptance" else "labelled answers are not acceptable"
    share = f"; {profile.risk} of at most {percent(profile.alpha or 0.0)} is promised"
    return f"{tested.bad} of {tested.known} {what}{share}"


def labels_wanted(profile: GuardProfile, events: Sequence[Trace], tested: Tested, seed: str) -> LabelsWanted | None:
    """The labels that would find a risk of twice alpha with probability 0.8, and rows for them; None if there are enough.

    Rows are picked by digest of their ids, so at random: served ones, and for ``false_acceptance`` abstentions too.
    """
    alpha = float(profile.alpha or 0.0)
    twice = min(0.95, 2 * alpha / (tested.served if profile.risk == "served_and_bad" else 1.0))
    needed = labels_needed(tested.promised, twice, tested.refuted)
    kinds = ("accepted", "abstained") if profile.risk == "false_acceptance" else ("accepted",)
    done = {event.id for event in events if event.judged}  # a label may come in a later row of the same id
    names = [event.id for event in events if event.decision in kinds and event.label is None and event.id not in done]
    if needed is None or tested.known >= needed or not (names or tested.known):  # nor where no guard has decided on any
        return None
    number = needed - tested.known
    if profile.risk == "false_acceptance":
        # of requests, those whose selected answer is bad, in calibration
        bad, counted = (float(profile.evidence.get(name) or 0.0) for name in ("selected_bad", "counted"))
        number = round(number / (min(1.0, bad / counted) if bad and counted else 1.0))
    rows = sorted(names, key=lambda name: chances(seed, f"label {name}"))[:number]
    sentence = (
        f"only labels can tell whether the answers are still as good: {number:,} more of {' and '.join(kinds)} requests picked at "
        f"random would find a {profile.risk} of {percent(2 * alpha)} with probability 0.8; 'bonmini-guard label TRACES -o LABELS', "
        f"then give drift the labelled log (--json lists the ids of {len(rows):,} rows)"
    )
    return LabelsWanted(number, tested.known, tuple(rows), sentence)
