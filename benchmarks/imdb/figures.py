"""The figures of one procedure on many requests, with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonmini_guard.policy.policy import Action, Policy, run

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Drawn:
    """Draws in the order they came: scores, acceptability, true utility and tokens, each of shape (prompts, N)."""

    scores: Floats
    acceptable: Floats
    utility: Floats
    tokens: Floats


@dataclass(frozen=True)
class Outcomes:
    """What a procedure did, one entry a prompt; ``best_acceptable`` is best-of-N's selected answer at the same N."""

    served: Floats
    acceptable: Floats
    utility: Floats
    draws: Floats
    tokens: Floats
    best_acceptable: Floats


def replay(policy: Policy, drawn: Drawn, serve_from: float = -np.inf) -> Outcomes:
    """The outcomes of a policy on every prompt; answers below ``serve_from`` are withheld (best-of-N at score 0)."""
    ran = [run(policy, row) for row in drawn.scores.tolist()]
    rows, index = np.arange(len(ran)), np.array([one.decision.index for one in ran])
    best = drawn.scores[:, : policy.budget].argmax(1)
    kept = np.array([one.decision.action is Action.SERVE for one in ran]) & (drawn.scores[rows, index] >= serve_from)
    spent = np.array([one.draws for one in ran])
    return Outcomes(
        kept.astype(float),
        drawn.acceptable[rows, index],
        drawn.utility[rows, index],
        spent.astype(float),
        np.array([row[:n].sum() for row, n in zip(drawn.tokens, spent, strict=True)]),
        drawn.acceptable[rows, best],
    )


#: name -> (numerator, denominator), summed over prompts before dividing.
RATES: dict[str, tuple[Callable[[Outcomes], Floats], Callable[[Outcomes], Floats]]] = {
    "false acceptances": (lambda o: o.served * (1 - o.acceptable), lambda o: np.full(len(o.served), 1 / len(o.served))),
    "false-acceptance rate": (lambda o: o.served * (1 - o.acceptable), lambda o: 1 - o.acceptable),
    "served-and-bad rate": (lambda o: o.served * (1 - o.acceptable), lambda o: np.ones_like(o.served)),
    "precision": (lambda o: o.served * o.acceptable, lambda o: o.served),
    "recall": (lambda o: o.served * o.acceptable, lambda o: o.acceptable),
    "recall vs best-of-N": (lambda o: o.served * o.acceptable, lambda o: o.best_acceptable),
    "acceptable rate": (lambda o: o.served * o.acceptable, lambda o: np.ones_like(o.served)),
    "mean true reward": (lambda o: o.served * o.utility, lambda o: o.served),
    "draws": (lambda o: o.draws, lambda o: np.ones_like(o.served)),
    "tokens": (lambda o: o.tokens, lambda o: np.ones_like(o.served)),
}


def figures(outcomes: Outcomes, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Each rate with its 95 % interval from 1,000 resamples of the prompts: (value, low, high); NaN for 0 / 0."""
    prompts = len(outcomes.served)
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    result: dict[str, tuple[float, float, float]] = {}
    for name, (numerator, denominator) in RATES.items():
        top, bottom = numerator(outcomes), denominator(outcomes)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.float64(top.sum()) / bottom.sum()
            samples = (weights @ top) / (weights @ bottom)
        finite = samples[np.isfinite(samples)]
        low, high = np.quantile(finite, [0.025, 0.975]) if finite.size else (np.nan, np.nan)
        result[name] = (float(value), float(low), float(high))
    return result
