"""The three risks of a guardrail: each is a numerator and a denominator, and promises their ratio of expectations.

A risk is at most alpha exactly when ``E[numerator + alpha (1 - denominator)] <= alpha``: the mean of a variable in [0, 1],
which the bounds can test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bonmini_guard.calibration.logs import Floats
from bonmini_guard.calibration.replay import Outcomes
from bonmini_guard.errors import ConfigurationError


@dataclass(frozen=True)
class Risk:
    """What is promised.

    Attributes:
        name: as on the command line.
        numerator: the chance of the bad event, for each prompt.
        denominator: the chance of the event it is a share of.
        is_share: whether the denominator varies, so that the strictest threshold proves nothing and the test sequence
            needs a start chosen on other data.
        promise: the end of "at most 5 % of ...".
    """

    name: str
    numerator: Callable[[Outcomes], Floats]
    denominator: Callable[[Outcomes], Floats]
    is_share: bool
    promise: str

    def loss(self, outcomes: Outcomes, alpha: float) -> Floats:
        """``numerator + alpha (1 - denominator)``, clipped to [0, 1] against rounding."""
        loss = self.numerator(outcomes) + alpha * (1.0 - self.denominator(outcomes))
        return np.clip(loss, 0.0, 1.0)


def _served_bad(outcomes: Outcomes) -> Floats:
    return outcomes.accepted - outcomes.accepted_good


def _selected_bad(outcomes: Outcomes) -> Floats:
    return 1.0 - outcomes.accepted_good - outcomes.rest_good


RISKS = {
    risk.name: risk
    for risk in (
        Risk(
            "served_and_bad",
            _served_bad,
            lambda o: np.ones_like(o.accepted),
            False,
            "requests get an answer that is not acceptable",
        ),
        Risk("bad_among_served", _served_bad, lambda o: o.accepted, True, "the answers served are not acceptable"),
        Risk(
            "false_acceptance",
            _served_bad,
            _selected_bad,
            True,
            "the requests whose selected answer is not acceptable are served all the same",
        ),
    )
}


def risk_named(name: str) -> Risk:
    """The risk of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in RISKS:
        raise ConfigurationError(f"unknown risk {name!r}: use one of {', '.join(RISKS)}")
    return RISKS[name]
