"""What certifies a threshold: exact tests of counts on the one order, strict to lax, until the first failure.

Fixed-sequence testing (Angelopoulos et al., arXiv 2110.01052, section 5). A row's loss under a threshold is 0 or 1, so the tests
are binomial. Thresholds are all distinct scores of the log itself: between two of them no decision changes, so this is the fixed
sequence over the continuum. Let t* be its first threshold whose true risk exceeds alpha. Anything laxer is certified only if the
test at t* passes, which has chance delta at most. No step may be skipped: with loops the risk is not monotone in the threshold.

Where the sequence begins must not depend on the rows it is tested on:

- ``served_and_bad`` and ``quality_loss`` count among all rows: at the strictest threshold nothing is lost, and it begins there.
- ``false_acceptance`` counts among rows whose selected answer is bad; it begins there, too.
- ``bad_among_served`` counts among served rows, of which a strict threshold has too few to refute anything. Its first threshold is
  taken from *other* rows (:func:`first_threshold`), so the argument above holds from there on, whatever the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bonmini_guard.calibration.logs import Floats, Integers
from bonmini_guard.calibration.paths import Steps
from bonmini_guard.errors import needing

with needing("calibration"):
    from scipy.special import bdtr, bdtrc, bdtrik, betaincinv, gammaln, xlog1py, xlogy

#: Thresholds among which a start is chosen, and points at which a posterior is averaged.
STARTS, POSTERIOR = 400, 32
#: For each risk, as on the command line, what the bad answers served are a share of: of requests whose selected answer is bad, the
#: last counts those that are served all the same.
RISKS = {"served_and_bad": "rows", "bad_among_served": "served", "false_acceptance": "selected_bad"}


def counts_of(found: Steps, risk: str) -> tuple[Floats, Floats]:
    """(T,) bad answers served, and what a risk is their share of."""
    return found.served_bad, getattr(found, RISKS[risk])


@dataclass(frozen=True)
class Found:
    """Where a sequence ended.

    Attributes:
        cut: the last entry certified; None if the first test failed.
        p_value: of that entry, or of the first test if it failed.
        tested: how many tests were made, from entry ``first`` on.
    """

    cut: int | None
    p_value: float
    tested: int
    first: int


def binomial(ones: Floats, units: Floats, level: float) -> Floats:
    """(m,) exact lower tails ``P(Bin(units, level) <= ones)``; 1 where there is no unit."""
    count = np.asarray(units, dtype=np.float64)
    return np.asarray(np.where(count > 0, bdtr(np.floor(ones + 1e-9), count.astype(int), level), 1.0), dtype=np.float64)


def in_sequence(p_values: Floats, first: int, delta: float) -> Found:
    """Test entry ``first``, then one by one to the laxest, until the first p-value above delta."""
    if first >= p_values.size:
        return Found(None, 1.0, 0, first)
    failed = np.flatnonzero(p_values[first:] > delta)
    passed = int(failed[0]) if failed.size else p_values.size - first
    if not passed:
        return Found(None, float(p_values[first]), 1, first)
    return Found(first + passed - 1, float(p_values[first + passed - 1]), passed + bool(failed.size), first)


def p_values(found: Steps, risk: str | None, level: float, delta: float) -> Floats:
    """(T,) of "the risk is above the level", None being an accelerator's loss of quality."""
    if risk is None:
        return quality_p_values(found, level, delta)
    return binomial(*counts_of(found, risk), level)


def first_threshold(other: Steps, rows: float, alpha: float, delta: float) -> float:
    """Where ``bad_among_served`` begins: where other rows say that the first test passes most likely; the strictest such threshold.

    With x of k served ones bad among the other rows, the chance that n like them pass is the mean of the binomial test's power over
    the posterior ``Beta(x + 2 alpha, k - x + 2 (1 - alpha))``. Looked at are thresholds under which
    ``n >= 3 log(delta) / log(1 - alpha)`` of the tested rows would be served; a third of it is what a spotless record needs.

    Args:
        other: counts on rows that are not tested; only from these is the threshold chosen.
        rows: how many rows are tested for each of the others.
        alpha: the level, in (0, 1).
        delta: the chance that it is missed.
    """
    least = 3 * math.log(delta) / math.log1p(-alpha)
    enough = np.flatnonzero(other.served * rows >= least)
    if not enough.size:
        return float(other.cuts[-1]) if other.cuts.size else math.inf
    looked = enough[np.unique(np.linspace(0, enough.size - 1, min(STARTS, enough.size)).astype(int))]
    served, bad = other.served[looked], other.served_bad[looked]
    middles = (np.arange(POSTERIOR)[:, None] + 0.5) / POSTERIOR
    chances = betaincinv(bad + 2 * alpha, served - bad + 2 * (1 - alpha), middles)
    count = np.floor(served * rows)
    power = bdtr(np.floor(bdtrik(delta, count, alpha)), count.astype(int), chances).mean(axis=0)
    return float(other.cuts[looked[int(np.argmax(power))]])


def net_loss(lost: float, won: float, rows: int, epsilon: float, delta: float) -> float:
    """p-value of "the mean of lost - won is epsilon or more", exact in spite of the unknown share of won.

    Rows are lost (1), won (-1) or neither (0), with chances l, w and the rest; the hypothesis is ``l - w >= epsilon``. For a given
    w the lower tail of the sum is largest at ``l = epsilon + w``. Along that line its derivative in w is
    ``rows (P(T' = k + 1) - P(T' = k))``, T' being the sum of one row less. If ``(sqrt(l) + sqrt(w))^2 <= 1`` each row is a sum of
    two independent 0/1 variables less one, so T' has its mode within 1 of its mean (Darroch 1964), and for
    ``k <= (rows - 1) epsilon - 2`` the derivative is not negative: the worst w is the largest. That one is bounded by an exact
    limit at level beta, and beta is added (Berger and Boos 1994), so the p-value is valid for any l and w. beta = delta / 20.

    Gains beyond the count c whose limit u is the last to meet that condition are not counted. Uncounted gains, these or some that
    nobody labelled, do no harm, as one more counted gain never allows fewer losses (a test checks it over sizes): whatever passes
    without them passes with all up to c. As to those beyond c: while w <= u, the sum and the limit used are both on the safe side.
    If w > u, whatever passes has at most so many losses, m, as pass with c gains. That is likeliest at w = u, and there
    ``P(lost <= m) (1 - beta) <= P(lost <= m, won >= c) <= P(lost - won <= m - c)``, which the test bounds.
    """
    beta = delta / 20
    won = min(round(won), _most_gains(rows, epsilon, beta))
    k, most = round(lost - won), upper_limit(max(0, won), rows, beta)
    chance = epsilon + most
    if won < 0 or k > (rows - 1) * epsilon - 2:
        return 1.0
    # beyond 12 deviations lie less than 1e-15 of the gains: there every sum is taken to be as low
    middle, wide = rows * most, 12 * math.sqrt(rows * most) + 60
    first, last = max(0, -k, int(middle - wide)), min(rows, int(middle + wide))
    wins = np.arange(first, last + 1)
    losses = np.minimum(k + wins, rows - wins)  # at most so many, given so many gains
    below = np.where(losses < 0, 0.0, bdtr(np.maximum(losses, 0), rows - wins, min(1.0, chance / (1 - most))))
    beyond = float(bdtrc(last, rows, most)) + (float(bdtr(first - 1, rows, most)) if first > max(0, -k) else 0.0)
    ways = gammaln(rows + 1) - gammaln(wins + 1) - gammaln(rows - wins + 1)
    each = np.exp(ways + xlogy(wins, most) + xlog1py(rows - wins, -most))
    return min(1.0, beta + beyond + float(np.sum(each * below)))


@lru_cache(maxsize=256)
def _most_gains(rows: int, epsilon: float, beta: float) -> int:
    """The largest count of gains with a limit u of ``(sqrt(epsilon + u) + sqrt(u))^2 <= 1``; -1 if there is none."""
    limit = ((1 - epsilon) / 2) ** 2
    return int(np.searchsorted(bdtr(np.arange(rows), rows, limit), beta, side="right")) - 1


def quality_p_values(found: Steps, epsilon: float, delta: float) -> Floats:
    """(T,) p-values of "acceptable epsilon or more less often than best-of-N".

    Two tests at half the level each: by losses alone (exact binomial), and by losses less gains (:func:`net_loss`). The second is
    worked out only up to the first entry that neither passes, and for blocks of entries at once, by their most losses and fewest
    gains: a block that passes so passes entry by entry.
    """
    p_values = np.minimum(1.0, 2 * binomial(found.lost, found.rows, epsilon))
    left = np.flatnonzero((p_values > delta) & (found.won > 0))
    at, size = 0, 1
    while at < left.size:
        block = left[at : at + size]
        p_value = _worst_of(found, block, epsilon, delta)
        if p_value > delta and block.size > 1:
            size = block.size // 2
            continue
        p_values[block] = np.minimum(p_values[block], p_value)
        if p_value > delta:
            break
        at, size = at + block.size, 2 * size
    return p_values


def _worst_of(found: Steps, block: Integers, epsilon: float, delta: float) -> float:
    """A p-value that is no smaller than any of the block's; 1 where their rows are not as many."""
    rows = found.rows[block]
    if rows.min() < rows.max():
        return 1.0
    return 2 * net_loss(float(found.lost[block].max()), float(found.won[block].min()), int(rows[0]), epsilon, delta / 2)


def upper_limit(ones: int, units: int, delta: float) -> float:
    """Clopper-Pearson upper limit: the largest mean that k of n ones do not refute at level delta; 1 if k = n."""
    return 1.0 if ones >= units else float(betaincinv(ones + 1, units - ones, 1 - delta))


def lower_limit(ones: int, units: int, delta: float) -> float:
    """Clopper-Pearson lower limit; 0 if k = 0."""
    return 0.0 if ones <= 0 else float(betaincinv(ones, units - ones + 1, delta))
