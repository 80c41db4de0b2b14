"""Each rule against its definition: by quadrature, by simulation, by looking at every allocation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm, t

from benchmarks.rivals.__main__ import needed
from benchmarks.rivals.others import AdaBoN, Beacon, OptScale, Pandora, PerfectReward, Weitzman
from benchmarks.rivals.ours import FixedN, Loops, Posterior
from benchmarks.rivals.rules import Pool


def pool(prompts=30, draws=12, seed=0):
    random = np.random.default_rng(seed)
    scores = random.normal(0, 1, (prompts, 1)) + random.normal(0, 1, (prompts, draws))
    return Pool(scores, scores + random.normal(0, 0.7, scores.shape) > 0.8)


def test_expected_improvement_is_that_of_the_predictive_t():
    some = pool(3)
    gains = Beacon().index(some)
    assert np.isinf(gains[:, :2]).all()
    for row, drawn in itertools.product(range(3), (3, 5, 9)):
        seen = some.scores[row, :drawn]
        scale = np.sqrt(((seen - seen.mean()) ** 2).sum() * (drawn + 1) / (drawn * (drawn - 1)))
        law = t(drawn - 1, seen.mean(), scale)
        best = float(seen.max())
        expected, _ = quad(lambda value, law=law, best=best: (value - best) * law.pdf(value), best, np.inf)
        assert gains[row, drawn - 1] == pytest.approx(expected, rel=1e-5)


def test_pandora_works_its_rate_out_of_the_tail_above_the_median():
    some = pool(2)
    rates = Pandora().index(some)
    value = np.exp(some.scores - np.median(some.scores))[1, :7]
    above = value[value >= np.median(value)]
    tail = above.mean() - np.median(value)
    largest = np.median(value) + np.log(12 / 3) * tail * (1 + np.sqrt(np.log(7) * np.log(20) / 7))
    assert rates[1, 6] == pytest.approx(value.max() / (value.max() + largest))
    assert not rates[:, :3].any()
    assert (Pandora().stops(some, rates, 0.0) == 4).all()


def test_optscale_draws_the_fewest_whose_best_reaches_the_target():
    some = pool(40, 20)
    stops = OptScale().stops(some, None, 1.0)
    for row, stop in enumerate(stops):
        below = norm.cdf(1.0, some.scores[row, :5].mean(), some.scores[row, :5].std())
        enough = [n for n in range(5, 21) if below**n <= 0.05]
        assert stop == (enough[0] if enough else 20)


def test_adabon_gives_the_rest_where_it_gains_most():
    some = pool(3, 10)
    rule = AdaBoN(batch=3)
    budget, first = 4, 3
    taken = rule.stops(some, None, budget)
    gains = rule._marginal(some.scores[:, :first], 10 - first)
    assert (np.diff(gains, axis=1) <= 1e-12).all()
    worth = {
        more: sum(gains[row, :count].sum() for row, count in enumerate(more))
        for more in itertools.product(range(4), repeat=3)
        if sum(more) == (budget - first) * 3
    }
    assert tuple(taken - first) == max(worth, key=worth.__getitem__)
    assert taken.mean() == budget


def test_the_gain_of_more_draws_is_that_of_a_kernel_density():
    some, random = pool(1, 8), np.random.default_rng(1)
    seen = some.scores[:, :6]
    spread = seen.std(ddof=1) * 6**-0.2
    drawn = random.choice(seen[0], (200_000, 2)) + random.normal(0, spread, (200_000, 2))
    for count in (1, 2):
        simulated = np.maximum(drawn[:, :count].max(1) - seen.max(), 0).mean()
        assert AdaBoN()._marginal(seen, 2)[0, :count].sum() == pytest.approx(simulated, abs=0.01)


def test_the_reservation_value_is_where_the_gain_is_the_price():
    some = pool(20)
    rule = Weitzman()
    rule.fit(some)
    value, _ = rule.index(some)
    for price in (0.02, 0.1):
        stops = rule.stops(some, rule.index(some), price)
        for row, stop in enumerate(stops):
            best = np.maximum.accumulate(value[row])
            gain = [np.maximum(value[row] - high, 0).mean() for high in best]
            assert all(one > price - 1e-9 for one in gain[: stop - 1])
            assert stop == 12 or gain[stop - 1] <= price + 1e-9


def test_the_posterior_stops_where_neither_one_nor_all_draws_pay():
    fitted, some, random = pool(300, 20), pool(2, 6, seed=3), np.random.default_rng(2)
    rule = Posterior()
    rule.fit(fitted)
    assert rule._within == pytest.approx(1.0, rel=0.1)
    assert rule._between == pytest.approx(1.0, rel=0.3)
    gains = rule.index(some)
    worth = lambda scores: np.interp(scores, rule._grid, rule._value)  # noqa: E731
    for drawn in (1, 4):
        weight = drawn / rule._within + 1 / rule._between
        mean = (some.scores[0, :drawn].sum() / rule._within + rule._mean / rule._between) / weight
        further = random.normal(mean, np.sqrt(rule._within + 1 / weight), (100_000, 6 - drawn))
        best = some.scores[0, :drawn].max()
        one = (worth(np.maximum(further[:, 0], best)) - worth(best)).mean()
        rest = (worth(np.maximum(further.max(1), best)) - worth(best)).mean() / (6 - drawn)
        assert gains[0, drawn - 1] == pytest.approx(max(one, rest), abs=0.01)
    assert (rule.stops(some, gains, 1.0) == 1).all()
    assert (rule.stops(some, gains, 0.0) == 6).all() or gains[:, -1].max() == 0


def test_loops_stop_at_their_ends_and_bounds_see_more():
    some = pool(50, 12)
    loops = Loops(4)
    assert set(loops.stops(some, loops.index(some), 1.0)) <= {4, 8, 12}
    stops = PerfectReward().stops(some, None, 12)
    assert all(not row[: stop - 1].any() for row, stop in zip(some.good, stops, strict=True))


def test_a_mixture_of_two_settings_reaches_what_lies_between_them():
    some = pool(400, 12)
    rates = [some.good[:, :n][np.arange(400), some.scores[:, :n].argmax(1)].mean() for n in (1, 12)]
    assert needed(FixedN(), some, rates[0]) == 1.0
    between = needed(FixedN(), some, (rates[0] + rates[1]) / 2)
    assert 1 < between < 12
    assert np.isinf(needed(FixedN(), some, 1.0))
