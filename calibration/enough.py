"""When the evidence does not suffice: how many more labelled prompts would, said in one true sentence."""

from __future__ import annotations

import numpy as np

from bonmini_guard.calibration import bounds
from bonmini_guard.calibration.evidence import percent
from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.replay import Settled
from bonmini_guard.calibration.risks import Risk

#: A threshold that serves nothing is no success, and one that serves next to nothing proves next to nothing: the certificate
#: must rest on at least this many served answers (in expectation).
LEAST_SERVED = 5

#: Beyond this many units the answer is "none that anyone will label".
MOST_UNITS = 1 << 22


def further_prompts(losses: Floats, level: float, delta: float, bound: str) -> int | None:
    """About how many more units with losses like these make the p-value at most delta.

    The sample is repeated until the bound accepts: the number is right if the further units have the same distribution.

    Args:
        losses: (U,) losses in [0, 1] of the first hypothesis tested.
        level: the mean under the hypothesis.
        delta: the level of the test.
        bound: the bound it is tested with.

    Returns:
        The number; None if the mean is not under the level, so that no number would do at these rates.
    """
    if losses.mean() >= level:
        return None
    low, high = losses.size, 2 * losses.size
    while _p_value(losses, high, level, delta, bound) > delta:
        low, high = high, 2 * high
        if high > MOST_UNITS:
            return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if _p_value(losses, middle, level, delta, bound) <= delta else (middle, high)
    return high - losses.size


def _p_value(losses: Floats, units: int, level: float, delta: float, bound: str) -> float:
    if bound == "betting":
        return float(bounds.betting(np.resize(losses, units)[:, None], level, delta)[0])
    # for 0/1 losses Hoeffding-Bentkus is a little conservative: the number errs to the safe side
    return float(bounds.hoeffding_bentkus(losses.mean(keepdims=True), units, level)[0])


def refusal(asked: str, risk: Risk, settled: Settled, further: int | None, tested: tuple[int, float]) -> str:
    """Why the first test failed, and what would help.

    Args:
        asked: the promise that was asked for.
        risk: its risk.
        settled: (R,) expectations at the first threshold tested.
        further: what :func:`further_prompts` says.
        tested: how many units were seen (prompts, or groups of them), and the first threshold tested.
    """
    units, first = tested
    if further is not None:
        return (
            f"not enough evidence for {asked}: the test saw {units} labelled {units_named(units, settled.draws.size)}; "
            f"about {further:,} further ones like them would suffice"
        )
    place = "at the most promising threshold" if risk.is_share else "even at the strictest threshold"
    return (
        f"not enough evidence for {asked}: at the rates of this log no number of further labels would do, because {place} "
        f"({first:g}) {_observed(risk, settled)}; a better reward model, fewer draws or a larger alpha would"
    )


def units_named(units: int, rows: int) -> str:
    """What the test counts: prompts, or groups where some hold several."""
    return "prompts" if units == rows else "groups of prompts"


def too_few(asked: str, served: float, seen: int, further: int) -> str:
    """Why a certificate that rests on a handful of answers is not given."""
    return (
        f"not enough evidence for {asked}: the laxest threshold that passes the test serves {served:.1f} of the {seen} prompts it "
        f"saw, fewer than the {LEAST_SERVED} that a certificate must rest on; about {further:,} further labelled prompts would do"
    )


def _observed(risk: Risk, settled: Settled) -> str:
    bad, served = float(settled.served_bad.sum()), float(settled.served.sum())
    if risk.name == "bad_among_served":
        return f"{_share(bad, served)} of the answers served are not acceptable"
    if risk.name == "false_acceptance":
        return f"{_share(bad, bad + float(settled.abstained_bad.sum()))} of {risk.promise}"
    return f"{_share(bad, settled.draws.size)} of {risk.promise}"


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole > 0 else "an unknown share"
