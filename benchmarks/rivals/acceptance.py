"""Would another acceptance do better on the same draws? Recall against best-of-32 at equal false acceptance, way by way.

``python -m benchmarks.rivals.acceptance --json benchmarks/results/acceptance.json``. The guardrail is the same throughout (loops of
4, at most 32 draws, one threshold); what is compared with it differs: the score; a head on the score and the request's own scores
so far (mean, deviation, second best, count); a second scorer; the sum of two (weights by logistic regression, as a spec of kind
``sum`` holds them). Heads and weights are fitted on one half of the prompts, curves are of the other; intervals over random halves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.imdb_real.keep import with_scores
from benchmarks.rivals.pools import pool_of_rows, regimes
from benchmarks.rivals.rules import Floats, Integers, Pool, first
from benchmarks.tables import arguments, print_table, with_interval, write_json

#: Draws after which it is looked.
ENDS = np.arange(4, 33, 4)
RATES = (0.05, 0.1)

#: Scores so far, (P, L) by loop's end: the best draw's place, and its value.
Seen = tuple[Integers, Floats]
Acceptance = Callable[[list[Pool]], Seen]


def by_score(scores: Floats) -> Seen:
    """The best so far at each loop's end."""
    best = np.stack([scores[:, :end].argmax(1) for end in ENDS], axis=1)
    return best, np.take_along_axis(scores, best, 1)


def features(scores: Floats) -> Floats:
    """(P, L, 5): best, mean, deviation, second best, and the logarithm of the count, of the draws so far."""
    parts = []
    for end in ENDS:
        seen = np.sort(scores[:, :end], axis=1)
        parts.append([seen[:, -1], seen.mean(1), seen.std(1), seen[:, -2], np.full(seen.shape[0], np.log(end))])
    return np.asarray(np.moveaxis(np.array(parts), (0, 1), (1, 2)))


def _logit(inputs: Floats, labels: Any) -> Callable[[Floats], Floats]:
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs, labels)
    return lambda more: np.asarray(fitted.decision_function(more.reshape(-1, more.shape[-1])).reshape(more.shape[:-1]))


def score(known: list[Pool]) -> Acceptance:
    """The model's own."""
    return lambda held: by_score(held[0].scores)


def second(known: list[Pool]) -> Acceptance:
    """The other model's."""
    return lambda held: by_score(held[1].scores)


def summed(known: list[Pool]) -> Acceptance:
    """Both, weighed on labelled draws."""
    logit = _logit(_both(known).reshape(-1, 2), known[0].good.ravel())
    return lambda held: by_score(logit(_both(held)))


def _both(pools: list[Pool]) -> Floats:
    return np.stack([pool.scores for pool in pools[:2]], axis=2)


def head(known: list[Pool]) -> Acceptance:
    """The score beside the request's own scores; the best draw stays the best."""
    best, _ = by_score(known[0].scores)
    labels = np.take_along_axis(known[0].good, best, 1)
    logit = _logit(features(known[0].scores).reshape(-1, 5), labels.ravel())
    return lambda held: (by_score(held[0].scores)[0], logit(features(held[0].scores)))


def summed_head(known: list[Pool]) -> Acceptance:
    """The head on the sum."""
    logit = _logit(_both(known).reshape(-1, 2), known[0].good.ravel())

    def stacked(pools: list[Pool]) -> list[Pool]:
        return [Pool(logit(_both(pools)), pools[0].good)]

    fitted = head(stacked(known))
    return lambda held: fitted(stacked(held))


WAYS = {
    "score": score,
    "head on the request's scores": head,
    "second scorer": second,
    "sum": summed,
    "head on the sum": summed_head,
}
ALONE = ("score", "head on the request's scores")


def recalls(seen: Seen, good: Any, wanted: float) -> list[float]:
    """Right answers served, of those that best-of-32 gets right, at each of :data:`RATES`."""
    best, values = seen
    labels = np.take_along_axis(good, best, 1)
    points = []
    for limit in np.quantile(values[:, -1], np.linspace(0, 1, 201)):
        passed = np.maximum.accumulate(values, axis=1) >= limit
        at = first(values >= limit, values.shape[1]) - 1
        served, right = passed[:, -1], labels[np.arange(at.size), at]
        points.append((float(served[~right].mean()), float((served & right).sum() / wanted)))
    rates, found = map(np.array, zip(*points, strict=True))
    return [float(found[rates <= rate].max(initial=0.0)) for rate in RATES]


def compared(models: list[Pool], splits: int) -> dict[str, list[list[float]]]:
    """By way: recalls in every split."""
    ways = {name: way for name, way in WAYS.items() if len(models) > 1 or name in ALONE}
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    prompts = models[0].scores.shape[0]
    for split in range(splits):
        order = np.random.default_rng(split).permutation(prompts)
        known = [model.take(order[: prompts // 2]) for model in models]
        # The same orders of the draws for both models.
        held = [model.take(order[prompts // 2 :]).shuffled(np.random.default_rng(split), 3) for model in models]
        good = held[0].good
        wanted = float(np.take_along_axis(good, held[0].scores.argmax(1)[:, None], 1).sum())
        for name, way in ways.items():
            found[name].append(recalls(way(known)(held), good, wanted))
    return found


def _cell(values: Any) -> str:
    return with_interval([np.mean(values), *np.quantile(values, [0.025, 0.975])])


def main() -> None:
    """All regimes."""
    given = arguments(__doc__, splits=20, json=Path).parse_args()
    results, lines = {}, []
    for regime, rows in regimes().items():
        models = [pool_of_rows(rows)]
        if "twin" in rows[0]["candidates"][0]:
            models.append(pool_of_rows(with_scores(rows, "twin")))
        found = {name: np.array(each) for name, each in compared(models, given.splits).items()}
        results[regime] = {name: each.round(4).tolist() for name, each in found.items()}
        for name, each in found.items():
            gains = each - found["score"]
            lines.append([regime, name, *(_cell(each[:, i]) for i in (0, 1)), *(_cell(gains[:, i]) for i in (0, 1))])
    print_table(["regime", "acceptance", *(f"recall at {rate:.0%}" for rate in RATES), *(f"gain at {r:.0%}" for r in RATES)], lines)
    write_json(given.json, {"splits": given.splits, "rates": RATES, "recalls": results})


if __name__ == "__main__":
    main()
