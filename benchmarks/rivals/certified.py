"""What certificates are worth on other prompts: profiles made on one half of each regime as ``bonmini-guard calibrate`` makes them.

``python -m benchmarks.rivals.certified --json benchmarks/results/certified.json``. Beside them rules of other works that come with
a promise. A guardrail asks for a cut of the false-acceptance rate by 70 %: ``--risk false_acceptance --alpha A``, with A three
tenths of what ``replay`` says of best-of-32 served at score 0, on the calibration half. Figures are ``replay``'s on the other half;
intervals hold 95 % of random halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.imdb_real.keep import with_scores
from benchmarks.rivals.pools import Rows, pool_of_rows, regimes
from benchmarks.rivals.releases import ConformalSet, EProcess, Outcome, Safer
from benchmarks.rivals.rules import Pool
from benchmarks.tables import arguments, print_table, with_interval, write_json
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.evidence import Certificate, NotEnoughEvidence
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import Log, log_of_rows
from bonmini_guard.policy.profile import GuardProfile

LOOPS, ONES = (4,) * 8, (1,) * 32
#: Of the rate of best-of-32 at zero, what is promised at most; how much a set may hold nothing acceptable beyond 32 draws.
SHARE, BEYOND = 0.3, 0.05
#: Prompts that weigh two models.
WEIGH = 50
SHOWN = ("cut", "cut_own", "false_acceptance_rate", "precision", "recall", "share_of_draws", "acceptable")
Figures = dict[str, float]


def measured(profile: GuardProfile, held: Log, at_zero: float) -> Figures:
    """What ``replay`` says of a profile; what serves every request has no false acceptances to speak of.

    Args:
        profile: certified on other prompts.
        held: the held-out part.
        at_zero: the false-acceptance rate there of best-of-32 at zero, by the model that has one.
    """
    told = replay_log(held, profile)
    own = told["best_of_n_at_zero"]["false_acceptance_rate"]
    draws = told["mean_draws"] / told["budget"]
    always = {"recall": told["recall_vs_best_of_n"], "share_of_draws": draws, "acceptable": told["acceptable_rate"]}
    if profile.mode == "accelerator":
        return always
    return always | cuts(told["false_acceptance_rate"], at_zero, own) | {"precision": told["precision"] or np.nan}


def cuts(rate: float, at_zero: float, own: float) -> Figures:
    """By which share the rate is lower than best-of-32's at zero, of the model that has one and of the one in use.

    NaN where that accepts nothing bad: a zero that was put where another cut of the utilities lies.
    """
    cut, cut_own = (1 - rate / before if before else np.nan for before in (at_zero, own))
    return {"cut": cut, "cut_own": cut_own, "false_acceptance_rate": rate}


def of_outcome(outcome: Outcome, pool: Pool, at_zero: float) -> Figures:
    """The same of a rule that is no profile, on the one order of each row; what it abstains from is its best draw so far."""
    stops, chosen = outcome
    best = np.where(np.arange(pool.scores.shape[1]) < np.maximum(stops, 1)[:, None], pool.scores, -np.inf).argmax(1)
    served, all_of_them = chosen >= 0, pool.scores.argmax(1)
    good = np.take_along_axis(pool.good, np.where(served, chosen, best)[:, None], 1)[:, 0]
    wanted = np.take_along_axis(pool.good, all_of_them[:, None], 1)[:, 0]
    always = {
        "recall": float((served & good).sum() / wanted.sum()),
        "share_of_draws": float(stops.mean() / pool.scores.shape[1]),
        "acceptable": float((served & good).mean()),
    }
    if served.all():
        return always
    rate, own = float(served[~good].mean()), float((pool.scores.max(1) >= 0)[~wanted].mean())
    return always | cuts(rate, at_zero, own) | {"precision": float(good[served].mean()) if served.any() else np.nan}


def one_split(known: Rows, held: Rows, scores: str) -> dict[str, Figures | None]:
    """By procedure, its figures; None where the evidence does not suffice.

    Args:
        known: log rows to calibrate on.
        held: others.
        scores: whose scores the procedures see; the rates at zero are always those of the model that has one.
    """
    plain = GuardProfile(mode="guardrail", schedule=(32,), thresholds=(0.0,))
    before, at_zero = (replay_log(rows, plain)["false_acceptance_rate"] for rows in (known, held))
    known, held = stacked(known, held) if scores == "sum" else (with_scores(known, scores), with_scores(held, scores))
    fitted, tested = log_of_rows(known), log_of_rows(held)
    asked: dict[str, Certificate | NotEnoughEvidence] = {
        "guardrail, false_acceptance": calibrate_guardrail(
            fitted, schedule=LOOPS, risk="false_acceptance", alpha=_share(SHARE * before)
        ),
        "guardrail, served_and_bad 5 %": calibrate_guardrail(fitted, schedule=LOOPS, alpha=0.05),
    }
    if len(fitted) >= 1000:
        alpha = _share(SHARE * before)
        asked["guardrail, false_acceptance --search"] = calibrate_guardrail(
            fitted, schedule=LOOPS, risk="false_acceptance", alpha=alpha, search=True
        )
    for epsilon in (0.01, 0.02):
        for name, shape in (("loops of 4", LOOPS), ("one at a time", ONES)):
            asked[f"accelerator {epsilon:.0%}, {name}"] = calibrate_accelerator(fitted, schedule=shape, epsilon=epsilon)
    found: dict[str, Figures | None] = {
        name: measured(one.profile, tested, at_zero) if isinstance(one, Certificate) else None for name, one in asked.items()
    }
    return found | _others(pool_of_rows(known), pool_of_rows(held), before, at_zero)


def _share(value: float) -> float:
    return min(0.999, max(0.001, value))


def _others(known: Pool, held: Pool, before: float, at_zero: float) -> dict[str, Figures | None]:
    """Rules of other works, asked for what they promise."""
    empty = float((~known.good.any(1)).mean())
    others = {
        "e-process release": EProcess(_share(SHARE * before)),
        f"CLM, F = max, none in 32 + {BEYOND:.0%}": ConformalSet(_share(empty + BEYOND)),
        f"SAFER, none in 32 + {BEYOND:.0%}": Safer(_share(empty + BEYOND)),
    }
    for rule in others.values():
        rule.fit(known)
    return {name: of_outcome(rule.run(held), held, at_zero) for name, rule in others.items()}


def halves(rows: Rows, splits: int, scores: str) -> list[dict[str, Figures | None]]:
    """Every split; 60 % of the prompts calibrate where half of them would be too few for a search."""
    size = 1200 if len(rows) >= 1500 else len(rows) // 2
    found = []
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(rows))
        found.append(one_split([rows[i] for i in order[:size]], [rows[i] for i in order[size:]], scores))
    return found


def summed(found: Sequence[dict[str, Figures | None]]) -> dict[str, Any]:
    """By procedure: how often it was certified, and mean and interval of each figure over those splits."""
    result = {}
    for name in found[0]:
        each = [one[name] for one in found if one[name] is not None]
        told = {key: _interval([one[key] for one in each if one is not None and key in one]) for key in SHOWN}
        result[name] = {"certified": len(each), **told}
    return result


def _interval(values: Sequence[float]) -> list[float] | None:
    there = [value for value in values if np.isfinite(value)]
    return [round(float(each), 4) for each in (np.mean(there), *np.quantile(there, [0.025, 0.975]))] if there else None


def stacked(known: Rows, held: Rows) -> tuple[Rows, Rows]:
    """Both as the sum of two models scores them, its weights fitted on the first rows, which then certify nothing."""
    fit, rest = known[:WEIGH], known[WEIGH:]
    both = [[(one["score"], one["twin"]) for one in row["candidates"]] for row in fit]
    fitted = LogisticRegression().fit(np.concatenate(both), [one["acceptable"] for row in fit for one in row["candidates"]])
    (first, second), intercept = fitted.coef_[0], fitted.intercept_[0]

    def summed_up(one: dict[str, Any]) -> dict[str, Any]:
        return one | {"score": float(first * one["score"] + second * one["twin"] + intercept)}

    first_ones, others = ([row | {"candidates": [*map(summed_up, row["candidates"])]} for row in rows] for rows in (rest, held))
    return first_ones, others


def main() -> None:
    """All regimes."""
    parser = arguments(__doc__, splits=20, json=Path)
    parser.add_argument("--only", help="one regime")
    given = parser.parse_args()
    results = {}
    every = [(regime, rows, "score") for regime, rows in regimes().items()]
    two = [(regime, rows) for regime, rows, _ in every if "twin" in rows[0]["candidates"][0]]
    every += [(f"{regime}, {scores}", rows, scores) for regime, rows in two for scores in ("twin", "sum")]
    for regime, rows, scores in every:
        if given.only not in (None, regime):
            continue
        results[regime] = summed(halves(rows, given.splits, scores))
        print(f"\n{regime}, {len(rows)} prompts\n")
        lines = [[name, each["certified"], *(with_interval(each[key]) for key in SHOWN)] for name, each in results[regime].items()]
        print_table(["procedure", "certified", *SHOWN], lines)
    write_json(given.json, {"splits": given.splits, "regimes": results})


if __name__ == "__main__":
    main()
