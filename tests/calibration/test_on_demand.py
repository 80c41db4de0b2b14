"""Labels on demand: the certificate of all labels for fewer of them, nothing that these would not certify, no hint of scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bonmini_guard.calibration import choose, sequence
from bonmini_guard.calibration.certify import quality_p_values
from bonmini_guard.calibration.evidence import Certificate
from bonmini_guard.calibration.on_demand import (
    BATCH,
    batch_of,
    demand,
    fixed_set,
    labels_asked,
    prospect,
    request,
    same_set,
    too_few,
)
from bonmini_guard.calibration.paths import Steps
from bonmini_guard.errors import ConfigurationError, InputError
from tests.calibration.populations import Population

FOUR, EIGHT = (4,) * 4, (4,) * 8
WORLD = Population(size=16)
WORLDS = {"clustered": WORLD, "half bad": Population(size=16, hopeless=0.5, middle=1.0), "ties": Population(size=16, digits=0)}
ASKED = {
    "served_and_bad": request("served_and_bad", 0.05, 0.1, FOUR),
    "bad_among_served": request("bad_among_served", 0.1, 0.1, FOUR),
    "false_acceptance": request("false_acceptance", 0.2, 0.1, FOUR),
    "accelerator": request("accelerator", 0.03, 0.1, FOUR),
}


def certified(outcome):
    """What a calibration ends with, as far as labels decide it."""
    return (outcome.profile.thresholds, outcome.sentence) if isinstance(outcome, Certificate) else None


def labelled_on_demand(log, labels, asked):
    """The set with those of all its labels that are asked for until no further one can help; and what was said on the way."""
    said = []
    while (step := demand(log, asked)).wanted.size:
        said.append(step.sentence)
        known, some = log.labels.copy(), step.wanted[:BATCH]
        known[some[:, 0], some[:, 1]] = labels[some[:, 0], some[:, 1]]
        log = replace(log, labels=known)
    return log, [*said, step.sentence]


def labels_used(log):
    return int(np.isfinite(log.labels).sum())


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("world", WORLDS)
def test_the_certificate_of_all_labels_for_fewer(world, what):
    full, asked = WORLDS[world].log(400, 3), ASKED[what]
    found, _ = labelled_on_demand(fixed_set(full, None), full.labels, asked)
    everything = replace(full, asked=np.ones(400, dtype=bool))
    assert certified(demand(found, asked).outcome) == certified(choose.calibrated(everything, asked, search=False))
    tested = sequence.test(everything, asked, "counts_as_bad")
    assert labels_used(found) < tested.labels
    assert labels_used(found) <= labels_asked(tested, asked) + (2 * BATCH if asked.risk else 100)
    if world != "ties" and what != "bad_among_served":  # there a test that fails shows it before all served are judged
        assert labels_asked(tested, asked) == pytest.approx(labels_used(found), abs=2 * BATCH if asked.risk else 100)


@pytest.mark.parametrize(("schedule", "a_row"), [(FOUR, 2.1), (EIGHT, 2.8)])
def test_labels_a_row(schedule, a_row):
    """1 + 1/2 + 1/3 + ... if all are needed, and measurably fewer on demand."""
    asked, world = request("served_and_bad", 0.05, 0.1, schedule), Population(size=32)
    tests = [sequence.test(world.log(400, seed), asked, "counts_as_bad") for seed in range(8)]
    assert np.mean([one.labels / 400 for one in tests]) < a_row
    assert np.mean([labels_asked(one, asked) / 400 for one in tests]) < 0.6 * a_row


@pytest.mark.parametrize("what", ASKED)
def test_no_choice_of_labels_certifies_what_all_of_them_do_not(what):
    """Whoever labels may choose what to label by what was labelled: labels that flatter most are left, others are taken away."""
    asked, generator = ASKED[what], np.random.default_rng(1)
    for seed in range(12):
        full = replace(WORLD.log(300, seed), asked=np.ones(300, dtype=bool))
        all_of_them = sequence.test(full, asked, "counts_as_bad").rungs[0].found
        for kept_good, kept_bad in ((1.0, 0.0), (1.0, 0.5), (0.5, 1.0), (0.2, 0.2)):
            share = np.where(full.labels == 1, kept_good, kept_bad)
            some = replace(full, labels=np.where(generator.random(share.shape) < share, full.labels, np.nan))
            found = sequence.test(some, asked, "counts_as_bad").rungs[0].found
            assert (-1 if found.cut is None else found.cut) <= (-1 if all_of_them.cut is None else all_of_them.cut)


def test_one_gain_more_never_allows_fewer_losses():
    for rows, epsilon, delta in ((50, 0.1, 0.1), (150, 0.05, 0.1), (400, 0.02, 0.05), (1000, 0.01, 0.2)):
        allowed = -1
        for won in range(0, rows // 2, max(1, rows // 50)):
            lost = np.arange(max(0, allowed), max(0, allowed) + rows // 5, dtype=float)
            nothing = np.zeros(lost.size)
            many = np.full(lost.size, float(rows))
            counts = Steps(nothing, many, nothing, nothing, nothing, lost, np.full(lost.size, float(won)), nothing, nothing)
            passed = np.flatnonzero(quality_p_values(counts, epsilon, delta) <= delta)
            assert passed.size or allowed < 0
            allowed = int(lost[passed[-1]]) if passed.size else allowed
        assert allowed > 0


def test_rows_that_say_where_to_begin_are_judged_before_any_that_is_tested():
    asked, full = ASKED["bad_among_served"], WORLD.log(200, 6)
    log, first = fixed_set(full, None), set(sequence.aside(full, ASKED["bad_among_served"])[0].tolist())
    step = demand(log, asked)
    assert "labels that say where to begin come first" in step.sentence
    assert set(step.wanted[:, 0].tolist()) == first
    known = log.labels.copy()
    known[tuple(step.wanted.T)] = full.labels[tuple(step.wanted.T)]
    assert not first & set(demand(replace(log, labels=known), asked).wanted[:, 0].tolist())


def test_the_set_is_chosen_by_digest():
    log = WORLD.log(200, 4)
    chosen = fixed_set(log, 50)
    other = fixed_set(replace(log, scores=-log.scores, labels=1 - log.labels), 50)
    assert len(chosen) == 50
    assert set(chosen.keys) == set(other.keys)
    assert set(chosen.keys) < set(fixed_set(log, 80).keys)
    assert np.isnan(chosen.labels).all()
    again = same_set(log, [str(number - 1) for number in chosen.places.lines])
    assert again.keys.tolist() == chosen.keys.tolist()
    grouped = replace(log, groups=np.arange(200) // 2)
    with pytest.raises(ConfigurationError, match="has 100 prompts: give 1 to 100"):
        fixed_set(grouped, 101)


def test_rows_added_after_a_look_are_refused():
    log = WORLD.log(200, 4)
    seen = replace(log, asked=np.arange(200) < 100)
    with pytest.raises(InputError, match="rows added after a look at labels void the promise"):
        fixed_set(seen, None)
    with pytest.raises(InputError, match="lacks 1 of the rows"):
        same_set(log, ["3", "200"])


def test_within_a_batch_neither_place_nor_order_tells_of_scores():
    asked, correlations = ASKED["served_and_bad"], []
    for seed in range(60):
        full = WORLD.log(100, seed)
        log = fixed_set(full, None)
        batch = batch_of(log, demand(log, asked).wanted)
        assert len(batch) == BATCH
        assert {tuple(pair) for pair in batch} == {tuple(pair) for pair in demand(log, asked).wanted[:BATCH]}
        correlations.append(np.corrcoef(np.arange(BATCH), full.scores[batch[:, 0], batch[:, 1]])[0, 1])
    assert abs(np.mean(correlations)) < 3.3 / np.sqrt(60 * (BATCH - 1))  # its standard error is 1 / sqrt(60 * 19)
    assert np.std(correlations) == pytest.approx(1 / np.sqrt(BATCH - 1), rel=0.3)


def test_the_line_after_each_batch_says_what_is_certified_and_what_may_follow():
    full = WORLD.log(400, 3)
    _, (*said, last) = labelled_on_demand(fixed_set(full, None), full.labels, ASKED["served_and_bad"])
    assert said[0].startswith("nothing is judged yet; about ")
    assert all(" more labels may reach 0." in line or "the next labels decide" in line for line in said)
    assert last == "certified down to 1.02, serves 0.65; no further label of these rows can help"
    middle = said[len(said) // 2]
    assert middle.startswith("certified down to ")
    reach = float(middle.rsplit(" ", 1)[1])
    assert abs(reach - 0.65) < 0.1


def test_the_floor_is_said_before_anyone_labels():
    log = WORLD.log(44, 5)
    assert "takes 45 rows at the very least, and there are 44" in too_few(fixed_set(log, None), ASKED["served_and_bad"])
    assert too_few(fixed_set(WORLD.log(45, 5), None), ASKED["served_and_bad"]) is None
    few = too_few(fixed_set(WORLD.log(24, 5), None), ASKED["bad_among_served"])
    assert "takes 22 rows at the very least, and there are 24 (22 of them tested" not in (few or "")


def test_what_a_set_may_reach_is_said_before_anyone_labels():
    full = WORLD.log(400, 3)
    said = prospect(fixed_set(full, None), ASKED["served_and_bad"])
    assert said.startswith("400 rows, at most 858 labels; served_and_bad <= 0.05 with confidence 0.9 takes 45 rows")
    assert "labels may do for a profile that serves 0.3" in said
    assert "will hardly do" in prospect(fixed_set(full, 60), ASKED["bad_among_served"])
    assert "takes 1" in prospect(fixed_set(full, None), ASKED["accelerator"])
