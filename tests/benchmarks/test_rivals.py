"""Each rule against its definition: by quadrature, by simulation, by looking at every allocation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, norm, t

from benchmarks.rivals import selections
from benchmarks.rivals.__main__ import curve, figures, needed
from benchmarks.rivals.others import AdaBoN, Beacon, OptScale, Pandora, PerfectReward, Weitzman
from benchmarks.rivals.ours import FixedN, Loops, Posterior
from benchmarks.rivals.releases import ConformalSet, EProcess, Safer
from benchmarks.rivals.rules import Pool
from bonmini_guard import MinimumBayesRisk, Soft
from bonmini_guard.policy.select import overlap


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
    points = curve(FixedN(), some)
    rates = [some.good[:, :n][np.arange(400), some.scores[:, :n].argmax(1)].mean() for n in (1, 12)]
    assert needed(points, rates[0]) == 1.0
    between = needed(points, (rates[0] + rates[1]) / 2)
    assert 1 < between < 12
    assert np.isinf(needed(points, 1.0))


def test_figures_of_best_of_n_are_those_of_its_formulas():
    some = pool(20_000, 8)
    told = figures(FixedN(), some, [(4.0, 1.0, 4.0)], 0.5)
    # Of 8 draws the best of 4 has rank r (0: best) with chance C(7 - r, 3) / C(8, 4).
    chances = np.array([35, 20, 10, 4, 1]) / 70
    assert told["win_rate"] == pytest.approx((chances * (7.5 - np.arange(5)) / 8).sum(), abs=0.005)
    assert told["kl"] == pytest.approx((chances * np.log(chances * 8)).sum(), abs=0.01)
    assert told["draws_an_acceptable_answer"] * told["break_even_of_a_dearer_model"] == pytest.approx(3.0)


def texted(prompts=6, draws=5):
    random = np.random.default_rng(4)
    texts = [[" ".join(random.choice(list("abcdef"), 6)) for _ in range(draws)] for _ in range(prompts)]
    alike = np.array([[[overlap(one, other) for other in each] for one in each] for each in texts])
    return texts, Pool(*(getattr(pool(prompts, draws), name) for name in ("scores", "good")), alike)


def test_soft_and_mbr_serve_what_the_package_serves():
    texts, some = texted()
    soft, risk, both = selections.SoftBestOfN(3), selections.MinimumRisk(), selections.RegularisedBestOfN()
    uniform = soft.uniform(some)
    for n in (1, 3, 5):
        chosen = [rule.run(some, rule.index(some), (n, own))[1] for rule, own in ((soft, 0.4), (risk, 0.0), (both, 2.0))]
        for row, each in enumerate(texts):
            seen = some.scores[row, :n].tolist()
            assert chosen[0][row] == Soft(0.4)(seen, each[:n], uniform[row])
            assert chosen[1][row] == MinimumBayesRisk()(seen, each[:n], 0.0)
            assert chosen[2][row] == MinimumBayesRisk(reward=0.5)(seen, each[:n], 0.0)


def test_top_share_serves_each_of_the_best_as_often():
    some = pool(6000, 12)
    _, chosen = selections.TopShare().run(some, None, (9, 4.0))
    ranks = (some.scores[:, :9] > some.scores[np.arange(6000), chosen][:, None]).sum(1)
    assert np.bincount(ranks) / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_pessimism_solves_for_its_level_and_accepts_in_proportion():
    some, rule = pool(4000, 13), selections.Pessimism()
    rule.fit(some)
    level = rule.level(some.scores[:, :6], 0.7)
    assert np.maximum(some.scores[:, :6] - level[:, None], 0).mean(1) == pytest.approx(np.full(4000, 0.7))
    draws, chosen = rule.run(some, None, (6, 0.7))
    chance = np.clip((some.scores[:, 6] - level) / (some.scores.max() - level), 0, 1)
    assert (draws == 7).mean() == pytest.approx(chance.mean(), abs=0.03)
    assert ((draws > 6) & (draws <= 13) & (chosen == draws - 1)).all()
    served = some.scores[np.arange(4000), chosen]
    assert (served[draws < 13] > level[draws < 13]).all()


def test_speculative_rejection_finishes_the_best_and_pays_for_the_parts():
    some = pool(50, 8)
    partial = np.stack([some.scores + np.random.default_rng(5).normal(0, sd, some.scores.shape) for sd in (1.0, 0.5)], axis=2)
    some = Pool(some.scores, some.good, None, partial)
    draws, chosen = selections.SpeculativeRejection().run(some, None, (8, 0.5))
    assert draws == pytest.approx(np.full(50, 8 * 0.25 + 4 * 0.25 + 2 * 0.5))
    for row in range(50):
        first = np.argsort(-partial[row, :, 0])[:4]
        second = first[np.argsort(-partial[row, first, 1])[:2]]
        assert chosen[row] == second[np.argmax(some.scores[row, second])]


def test_other_orders_keep_each_draw_together():
    _, some = texted()
    partial = np.stack([some.scores, some.scores + 1], axis=2)
    mixed = Pool(some.scores, some.good, some.alike, partial).shuffled(np.random.default_rng(0), 2)
    where = [np.flatnonzero(some.scores[0] == score)[0] for score in mixed.scores[6]]
    assert mixed.alike[6] == pytest.approx(some.alike[0][np.ix_(where, where)])
    assert mixed.partial[6, :, 1] == pytest.approx(mixed.scores[6] + 1)


def test_evidence_adds_up_until_it_suffices():
    known, held, rule = pool(200, 12), pool(400, 12, seed=1), EProcess(0.1)
    rule.fit(known)
    uniform = (np.arange(rule.failures.size) + 1) / (rule.failures.size + 1)
    # Under scores like those of the pool the mean e-value is at most 1.
    assert (0.5 * uniform**-0.5).mean() <= 1.0
    stops, chosen = rule.run(held)
    for row in range(0, 400, 40):
        total, stop = 1.0, 12
        for draw in range(12):
            above = (rule.failures >= held.scores[row, draw]).sum()
            total *= 0.5 * ((1 + above) / (1 + rule.failures.size)) ** -0.5
            if total >= 10:
                stop = draw + 1
                break
        assert stops[row] == stop
        assert chosen[row] == (held.scores[row, :stop].argmax() if total >= 10 else -1)


def test_a_set_holds_something_acceptable_as_often_as_promised():
    missed = []
    for seed in range(40):
        rule, held = ConformalSet(0.45), pool(3000, 12, seed=100 + seed)
        rule.fit(pool(300, 12, seed=seed))
        stops, _ = rule.run(held)
        missed.append(1 - np.maximum.accumulate(held.good, axis=1)[np.arange(3000), stops - 1].mean())
    assert np.mean(np.array(missed) > 0.45) <= 0.2
    assert np.mean(missed) > 0.35


def test_safer_takes_the_fewest_draws_and_the_highest_level():
    known, rule = pool(300, 12), Safer(0.5, beta=0.2)
    rule.fit(known)
    reached = known.good[:, : rule.draws].any(1)
    assert beta.ppf(0.9, (~reached).sum() + 1, reached.sum()) <= 0.5
    fewer = known.good[:, : rule.draws - 1].any(1)
    assert beta.ppf(0.9, (~fewer).sum() + 1, fewer.sum()) > 0.5
    best = np.where(known.good, known.scores, -np.inf)[:, : rule.draws].max(1)[reached]
    assert ((best < rule.level).sum() + 1) / (best.size + 1) <= 0.2
    assert ((best <= rule.level).sum() + 1) / (best.size + 1) > 0.2
    impossible = Safer(0.01)
    impossible.fit(known)
    assert (impossible.run(known)[1] == -1).all()
