"""From costs to a threshold: what a bad answer, a refusal and a draw cost says which threshold is cheapest, and what it promises.

The threshold is chosen on a quarter of the units. The promise is a bound on the others: the exact upper limit (Clopper and Pearson)
of ``served_and_bad`` at that one threshold, so nothing was chosen on the rows that certify.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bonmini_guard.calibration.certify import Found, upper_limit
from bonmini_guard.calibration.choose import FIT_SHARE, certificate_of, prepared
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence, percent, sealed
from bonmini_guard.calibration.logs import Floats, Log
from bonmini_guard.calibration.orders import Order, split
from bonmini_guard.calibration.paths import Missing, Paths, Steps, counts_at, exits, labels_used, paths, steps
from bonmini_guard.calibration.sequence import LEAST_SERVED, Evidence, Request, Rung, suffices
from bonmini_guard.errors import ConfigurationError

#: Units that certify, at least: the limit of a spotless record of fewer is above 7 %.
_LEAST = 30


@dataclass(frozen=True)
class Prices:
    """What a bad answer that is served, a refusal and a draw cost, in any one unit.

    Raises:
        ConfigurationError: one is negative or no number, or a bad answer costs no more than a refusal.
    """

    bad: float
    abstain: float
    draw: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(price) and price >= 0 for price in (self.bad, self.abstain, self.draw)):
            raise ConfigurationError("prices must be 0 or more: what a bad answer, a refusal and a draw cost, in one unit")
        if self.bad <= self.abstain:
            raise ConfigurationError(
                f"a bad answer costs {self.bad:g} and a refusal {self.abstain:g}: where a refusal costs as much, serve everything"
            )

    def of(self, found: Steps, rows: int) -> Floats:
        """(T,) expected cost of a request under each threshold."""
        kept = np.maximum(found.rows, 1.0)
        said = (self.bad * found.served_bad + self.abstain * (found.rows - found.served)) / kept
        return said + self.draw * found.draws / rows


def calibrate_costs(
    log: Log,
    *,
    schedule: Sequence[int],
    prices: Prices,
    delta: float = 0.1,
    order: Order = "auto",
    seed: int = 0,
    calibrations: int = 1,
) -> Certificate | NotEnoughEvidence:
    """Choose the threshold whose expected cost is least, and certify how many bad answers it serves.

    Arguments and errors are those of :func:`~bonmini_guard.calibration.choose.calibrate_guardrail`.

    Returns:
        A profile whose ``alpha`` is the bound, and the sentence; or why not: nothing is worth serving at these prices, or there are
        too few units.
    """
    asked = Request("guardrail", "served_and_bad", 0.5, delta, tuple(schedule), order=order, seed=seed, calibrations=calibrations)
    units, requests, missing, evidence = prepared(log, asked)
    evidence["prices"] = vars(prices)
    fit, rest = (units.take(rows) for rows in split(units, FIT_SHARE, seed * 2 + 3))
    if len(rest) < _LEAST:
        return NotEnoughEvidence(
            f"{len(units)} units are too few: {_LEAST} have to certify, beside a quarter that chooses", evidence
        )
    threshold = _cheapest(fit, asked, prices, missing)
    if threshold is None:
        return NotEnoughEvidence(
            "at these prices it is cheapest to serve nothing: a refusal costs too little, or answers are bad", evidence
        )
    path = paths(rest, asked.schedule, order, seed=seed)
    counts = counts_at(path, exits(path, threshold), missing)
    found = replace(counts, cuts=np.array([threshold] * 2))  # what is written lies between the two
    level = upper_limit(int(found.served_bad[0]), int(found.rows[0]), asked.share)
    asked = replace(asked, level=min(math.ceil(level * 1e4) / 1e4, 0.9999))
    tested = Evidence(rest, (Rung(1, path, found, Found(0, asked.share, 1, 0)),), labels_used([path]))
    if not suffices(tested.rungs[0], asked):
        return NotEnoughEvidence(
            f"at these prices {tested.rungs[0].served:.0f} of {len(rest)} are served, and a certificate takes {LEAST_SERVED}",
            evidence,
        )
    evidence |= {"certify_rows": len(rest), "fit_rows": len(fit), "missing_labels": missing, "labels_used": tested.labels}
    certificate = certificate_of(tested, asked, evidence, requests)
    once = paths(rest, (1,), order, seed=seed)
    return _told(certificate, _costs(path, once, found, prices, missing))


def _cheapest(fit: Log, asked: Request, prices: Prices, missing: Missing) -> float | None:
    """The threshold that costs least on these rows; None where serving nothing costs less than any."""
    path = paths(fit, asked.schedule, asked.order, seed=asked.seed)
    found = steps(path, missing=missing)
    if not found.cuts.size:
        return None
    costs = prices.of(found, len(path))
    best = int(np.argmin(costs))
    nothing = prices.abstain + prices.draw * float(path.draws[-1])
    return None if costs[best] >= nothing else found.threshold(best)


def _costs(path: Paths, once: Paths, found: Steps, prices: Prices, missing: Missing) -> dict[str, float]:
    """Expected costs of a request, beside what serves every best answer and what draws once."""
    whole = counts_at(path, np.full(len(path), len(path.draws) - 1), missing)
    first = counts_at(once, np.zeros(len(once), dtype=np.int64), missing)
    by = {"guardrail": (found, path), "best_of_n": (whole, path), "one_draw": (first, once)}
    return {name: float(prices.of(counted, len(ran))[0]) for name, (counted, ran) in by.items()}


def _told(certificate: Certificate, costs: dict[str, float]) -> Certificate:
    profile = certificate.profile
    rounded = {name: round(cost, 6) for name, cost in costs.items()}
    budget = sum(profile.schedule)
    saved = 1 - costs["guardrail"] / costs["best_of_n"] if costs["best_of_n"] > 0 else 0.0
    return Certificate(
        sealed(profile, {"expected_cost": rounded}),
        f"{certificate.sentence} A request costs {costs['guardrail']:.3g} at these prices, {percent(max(0.0, saved))} less than "
        f"best-of-{budget} ({costs['best_of_n']:.3g}); a single draw that is always served costs {costs['one_draw']:.3g}.",
    )
