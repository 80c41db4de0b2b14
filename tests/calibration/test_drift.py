"""``drift``: it sees what changed, and without a change it stays silent at the stated rate."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom

from bonmini_guard.adapters.rewards.probe import agree, fingerprint_of
from bonmini_guard.calibration.certify import lower_limit
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.drift import find_drift, same_scorer
from bonmini_guard.calibration.findings import FALSE_ALARM_RATE, at_least, labels_needed
from bonmini_guard.calibration.logs import log_of_rows
from bonmini_guard.calibration.martingale import Ranks, Refutation, Shares, lower_sequence
from bonmini_guard.calibration.orders import order_of
from bonmini_guard.calibration.traces import traces_of_rows
from bonmini_guard.commands import drift as command
from bonmini_guard.errors import ConfigurationError, InputError, ProfileError
from bonmini_guard.testing import FakeRewardModel
from tests.calibration.helpers import called, rows_of, written
from tests.calibration.populations import Population
from tests.calibration.watching import TRAFFIC, alarms, calibrated, guarded, placed
from tests.sizes import most, worlds


def look(profile, log, looks=1, **options):
    return find_drift(profile, traces_of_rows(placed(guarded(profile, log, **options)), profile), looks=looks)


def found(drift):
    return {finding.test for finding in drift.findings if finding.found}


def test_the_same_traffic_is_no_drift():
    drift = look(calibrated(), TRAFFIC.log(400, 12345))
    assert not drift.drift
    assert {finding.test for finding in drift.findings} == {
        "first_loop_scores",
        "first_loop_scores_over_time",
        "abstentions",
        "labels",
    }


def test_what_other_thresholds_decided_is_compared_by_its_first_loops_alone():
    # a profile was called CHANGED by the traces of the stricter guard that it was made from, whose labels seemed to bear it out
    profile = calibrated()
    strict = profile.model_copy(update={"thresholds": tuple(each + 1.0 for each in profile.thresholds)})
    ran = {"schedule": [2, 2], "exit": "loop"}
    old = [row | ran | {"thresholds": list(strict.thresholds)} for row in guarded(strict, TRAFFIC.log(400, 12345), prefix="old-")]
    new = [row | ran | {"thresholds": list(profile.thresholds)} for row in guarded(profile, TRAFFIC.log(300, 5))]
    traces = traces_of_rows(placed([*old, *new]), profile)
    assert (len(traces.traces), len(traces.decided), traces.left_out["other_thresholds"]) == (700, 300, 400)
    assert {event.id for event in traces.judged} == {row["id"] for row in new}
    assert not find_drift(profile, traces).drift


def test_requests_of_one_burst_are_taken_in_the_order_in_which_they_began():
    # those that took few loops are written first: their scores are high, and unchanged traffic was called CHANGED
    profile = calibrated()
    rows = []
    for number, row in enumerate(guarded(profile, TRAFFIC.log(200, 5))):
        took = 0.3 * len(row["candidates"])
        at = datetime.fromtimestamp(1e9 + number / 1000 + took, UTC).isoformat(timespec="milliseconds")
        rows.append(row | {"at": at, "timings": {"total": took}})
    as_written = sorted(rows, key=lambda row: row["at"])
    taken = [trace.id for trace in traces_of_rows(placed(as_written), profile).traces]
    assert taken == [row["id"] for row in rows] != [row["id"] for row in as_written]
    untimed = [{key: value for key, value in row.items() if key != "at"} for row in as_written]
    assert "first_loop_scores_over_time" in found(find_drift(profile, traces_of_rows(placed(untimed), profile)))
    assert not find_drift(profile, traces_of_rows(placed(as_written), profile)).drift
    # a day, or a whole second, less how long each took, put those of many loops first
    days = [row | {"at": "2026-01-01"} for row in rows]
    assert not find_drift(profile, traces_of_rows(placed(days), profile)).drift


@pytest.mark.parametrize(
    "odd", [{"timings": {"total": 10**400}}, {"timings": {"total": math.nan}}, {"schedule": [2, 2], "thresholds": [10**400, 1]}]
)
def test_numbers_that_no_guard_writes_leave_the_order_as_written(odd):
    profile = calibrated()
    rows = [
        row | {"at": f"2026-01-01T00:00:{59 - at}.5", "timings": {"total": 1}} | odd
        for at, row in enumerate(guarded(profile, TRAFFIC.log(9, 5)))
    ]
    taken = [trace.id for trace in traces_of_rows(placed(rows), profile).traces]
    assert taken == [row["id"] for row in rows][:: -1 if "thresholds" in odd else 1]


@pytest.mark.parametrize(
    ("calibrate", "level"), [(calibrate_guardrail, {"alpha": 0.1}), (calibrate_accelerator, {"epsilon": 0.05})]
)
def test_the_same_traffic_is_no_drift_where_the_log_was_labelled_in_part(calibrate, level):
    # Decisions of the rows that count were held against all rows: 3 of 10 labels told of 3 in 10 of the abstentions.
    log = TRAFFIC.log(1000, 0)
    log.labels[np.random.default_rng(0).random(log.labels.shape) > 0.3] = np.nan
    profile = calibrate(log, schedule=(2, 2), **level).profile
    assert not look(profile, TRAFFIC.log(600, 12345), labelled=0.0).drift


def repeated(kind, seed):
    """Requests of whom half ask the same easy question, or of conversations of four that grow harder."""
    log, turn = TRAFFIC.log(1200, seed), np.arange(1200)
    easier = np.where(turn % 2, 2.0, 0.0) if kind == "prompt" else -1.0 * (turn % 4)
    told = (lambda i: "What is new?" if i % 2 else f"p{i}") if kind == "prompt" else (lambda i: f"c{i // 4}")
    log = replace(log, scores=log.scores + easier[:, None], labels=np.where(easier[:, None] < 0, 0.0, log.labels))
    return log, told


@pytest.mark.parametrize("kind", ["prompt", "group", "user"])
def test_the_same_traffic_is_no_drift_where_prompts_come_again_or_conversations_grow_harder(kind):
    # A profile counts one row a unit; drift looks at all requests with one prompt, and at the first of each conversation (or user).
    (log, told), (later, _) = repeated(kind, 0), repeated(kind, 12345)
    rows = [{**row, kind: told(number)} for number, row in enumerate(rows_of(log))]
    log = log_of_rows(rows, group="user" if kind == "user" else None)
    profile = calibrate_guardrail(log, schedule=(2, 2), alpha=0.1).profile
    traces = [{**row, kind: told(number)} for number, row in enumerate(guarded(profile, later, labelled=0.0))]
    assert not find_drift(profile, traces_of_rows(placed(traces), profile)).drift


@pytest.mark.parametrize("labelled", ["later turns", "a set of rows"])
def test_first_turns_are_compared_whichever_turns_are_labelled(labelled):
    # there was nothing to compare with where no first turn was labelled; of a set for labelling any turn stood for the first
    (log, told), (later, _) = repeated("group", 0), repeated("group", 12345)
    rows = [{**row, "group": told(number)} for number, row in enumerate(rows_of(log))]
    for number, row in enumerate(rows):
        if labelled == "later turns" and number % 4 < 2:
            row["candidates"] = [one | {"acceptable": None} for one in row["candidates"]]
        if labelled == "a set of rows" and number % 4 == number // 4 % 4:
            row["label_sampling"] = "random"
    profile = calibrate_guardrail(log_of_rows(rows), schedule=(2, 2), alpha=0.3).profile
    assert len(profile.reference) == profile.evidence["first_of_groups"]["requests"] == 300
    traces = [{**row, "group": told(number)} for number, row in enumerate(guarded(profile, later, labelled=0.0))]
    assert not find_drift(profile, traces_of_rows(placed(traces), profile)).drift


def test_the_same_traffic_is_no_drift_where_the_log_is_of_two_sets_one_behind_the_other():
    # the reference was of the log's first 1,000 rows, which are of the first set alone
    log, later = TRAFFIC.log(2400, 0), TRAFFIC.log(400, 12345)
    profile = calibrate_guardrail(harder(log, np.arange(2400) >= 1200), schedule=(2, 2), alpha=0.1).profile
    assert len(profile.reference) == 1000
    assert not look(profile, harder(later, np.arange(400) % 2 > 0), labelled=0.0).drift


def harder(log, rows):
    """The log, in some rows of which every answer scores lower, and is bad."""
    labels = np.where(rows[:, None], 0.0, log.labels).astype(np.float32)
    return replace(log, scores=log.scores - 2.0 * rows[:, None], labels=labels)


def test_requests_whose_first_loop_failed_count_on_neither_side():
    # drift leaves them out; in the profile they were abstentions
    log = TRAFFIC.log(600, 0)
    gone = np.arange(200)[:, None], order_of(log)[:200, :2]
    log.scores[gone] = log.labels[gone] = np.nan
    profile = calibrate_guardrail(log, schedule=(2, 2), alpha=0.1).profile
    assert profile.evidence["first_of_groups"]["requests"] == len(profile.reference) == 400
    assert not look(profile, TRAFFIC.log(400, 12345), labelled=0.0).drift


def test_harder_traffic_is_found():
    drift = look(calibrated(), Population(size=4, middle=-1.0).log(400, 12345))
    assert {"first_loop_scores", "first_loop_scores_over_time", "abstentions"} <= found(drift)
    assert "calibrate anew" in drift.todo


def test_a_change_on_the_way_is_dated():
    profile = calibrated()
    rows = [*guarded(profile, TRAFFIC.log(500, 1)), *guarded(profile, Population(size=4, middle=-1.5).log(300, 2))]
    pairs = placed({**row, "id": str(i)} for i, row in enumerate(rows))
    over_time = next(
        f for f in find_drift(profile, traces_of_rows(pairs, profile)).findings if f.test == "first_loop_scores_over_time"
    )
    assert over_time.found
    place = int(over_time.what.split("at trace ")[1].split()[0])
    assert 500 < place < 700


def test_a_scorer_that_is_fooled_is_found_by_its_labels():
    log = TRAFFIC.log(400, 3)
    fooled = TRAFFIC.log(400, 3)
    fooled.labels[:] = np.where(np.random.default_rng(0).random(log.labels.shape) < 0.5, 0.0, log.labels)
    assert not look(calibrated(), log).drift
    assert found(look(calibrated(), fooled)) == {"labels"}


@pytest.mark.parametrize("risk", ["bad_among_served", "false_acceptance"])
def test_labels_are_compared_for_the_risks_that_are_shares(risk):
    profile = calibrated(prompts=600, risk=risk, alpha=0.25)
    wrong = TRAFFIC.log(400, 3)
    wrong.labels[:] = 0.0
    assert "labels" not in found(look(profile, TRAFFIC.log(400, 3)))
    assert "labels" in found(look(profile, wrong))


def test_labels_that_are_no_random_sample_do_not_count():
    wrong = TRAFFIC.log(400, 3)
    wrong.labels[:] = 0.0
    drift = look(calibrated(), wrong, label_sampling="informative")
    assert not drift.drift
    assert drift.labels_wanted.known == 0


def test_where_only_labels_could_tell_it_asks_for_them():
    profile = calibrated()
    drift = look(profile, TRAFFIC.log(400, 12345), labelled=0.0)
    wanted = drift.labels_wanted
    served = {row["id"] for row in guarded(profile, TRAFFIC.log(400, 12345)) if row["decision"] == "accepted"}
    assert 10 < wanted.number == len(wanted.rows) == len(set(wanted.rows))
    assert set(wanted.rows) <= served
    assert list(wanted.rows) != sorted(wanted.rows, key=int)
    assert f"{wanted.number} more of accepted requests" in wanted.sentence
    assert "bonmini-guard label" in wanted.sentence
    assert look(profile, TRAFFIC.log(400, 12345)).labels_wanted is None  # these have enough
    both = [*guarded(profile, TRAFFIC.log(200, 12345), 0.0), *list(guarded(profile, TRAFFIC.log(200, 12345)))[:40]]
    further = find_drift(profile, traces_of_rows(placed(both), profile)).labels_wanted  # labels came in a file of their own
    assert further.known
    assert not {row["id"] for row in both[200:] if row["decision"] == "accepted"} & set(further.rows)
    plain = placed(rows_of(TRAFFIC.log(400, 12345)))
    strict = profile.model_copy(update={"risk": "bad_among_served"})
    assert find_drift(strict, traces_of_rows(plain, strict)).labels_wanted is None  # no guard has decided on any of them


def test_where_only_bad_answers_count_labels_are_asked_for_until_enough_are_bad():
    profile = calibrated(prompts=600, risk="false_acceptance", alpha=0.25)
    bad, counted = profile.evidence["selected_bad"], profile.evidence["counted"]
    all_bad = profile.model_copy(update={"evidence": profile.evidence | {"selected_bad": counted}})
    number, fewest = (look(each, TRAFFIC.log(400, 12345), labelled=0.0).labels_wanted.number for each in (profile, all_bad))
    assert bad < 0.9 * counted
    assert number == pytest.approx(fewest * counted / bad, abs=1)


def test_as_many_labels_as_asked_for_find_twice_the_promised_rate():
    number = labels_needed(0.1, 0.2, lambda bad, units: at_least(bad, units, 0.1) <= 0.01)
    bad = next(bad for bad in range(number) if binom.sf(bad - 1, number, 0.1) <= 0.01)
    assert 0.8 <= binom.sf(bad - 1, number, 0.2) < 0.9
    assert labels_needed(0.2, 0.1, lambda bad, units: units > 0) is None
    # Where all will be bad, seven that are refute a half: (1/2)^7 < 0.01 < (1/2)^6.
    assert labels_needed(0.5, 1.0, lambda bad, units: at_least(bad, units, 0.5) <= 0.01) == 7


def test_more_looks_have_a_smaller_level_each():
    once, often = look(calibrated(), TRAFFIC.log(400, 1)), look(calibrated(), TRAFFIC.log(400, 1), looks=52)
    assert often.findings[0].level == pytest.approx(once.findings[0].level / 52)
    assert (once.holds_for, often.holds_for) == ("for this one look", "for 52 such looks together")


def test_the_tests_of_one_look_share_its_false_alarm_rate():
    levels = [finding.level for finding in look(calibrated(), TRAFFIC.log(400, 1)).findings]
    assert max(levels) == pytest.approx(FALSE_ALARM_RATE / len(levels))
    assert len(levels) == 4


def test_other_parts_are_drift_without_a_test():
    profile = calibrated().model_copy(update={"fingerprints": {"reward_model": "a", "generator": "b"}})
    log = TRAFFIC.log(200, 12345)
    assert found(look(profile, log, scored_by="other", generated_by="b")) == {"fingerprints"}
    assert not look(profile, log, scored_by="a", generated_by="b").drift


class Probed:
    """A scorer known by what it makes of the fixed probe pairs."""

    def __init__(self, *scores):
        self._mark = fingerprint_of(scores)

    def fingerprint(self):
        return self._mark

    def agrees_with(self, fingerprint):
        return agree(fingerprint, self._mark, 0.1)


def test_a_swapped_scorer_is_known_by_its_fingerprint_or_its_probes_alone():
    profile = calibrated().model_copy(update={"fingerprints": {"reward_model": Probed(2.0, -1.0).fingerprint()}})
    assert not same_scorer(profile, Probed(2.05, -1.05)).found
    swapped = same_scorer(profile, Probed(-1.0, 2.0))  # the same spread
    assert (swapped.test, swapped.found) == ("fingerprints", True)
    assert "calibrated with another reward_model (probe:2.00,-1.00)" in swapped.what
    assert same_scorer(profile, FakeRewardModel({})).found
    with pytest.raises(ProfileError, match="does not say which reward model"):
        same_scorer(calibrated(), Probed(2.0, -1.0))


def test_the_transform_is_applied_to_raw_scores():
    profile = calibrated()
    moved = profile.model_copy(update={"score_transform": profile.score_transform.model_copy(update={"b": -5.0})})
    assert "first_loop_scores" in found(look(moved, TRAFFIC.log(200, 12345)))


def test_what_cannot_be_compared_is_counted():
    profile = calibrated()
    row = next(guarded(profile, TRAFFIC.log(1, 0)))
    rows = [
        row,
        row,
        {**row, "id": "a", "group": "g"},
        {**row, "id": "b", "group": "g"},
        {**row, "id": "e", "group": 1},
        {**row, "id": "f", "group": 1.0},
        *({**row, "id": name, "group": ""} for name in "ghi"),
        {**row, "id": "c", "candidates": row["candidates"][:1], "selected": 0},
        {**row, "id": "d", "candidates": [{"text": "x", "score": None}] * 2},
    ]
    traces = traces_of_rows(placed(rows), profile, key="group")
    assert [trace.slice for trace in traces.traces] == [None, "g", "1", None, None, None]
    assert traces.left_out == {"duplicate": 1, "same_group": 2, "unfinished": 1, "unscored": 1}


def test_what_is_wrong_is_refused(tmp_path):
    profile = calibrated()
    row = next(guarded(profile, TRAFFIC.log(1, 0)))
    with pytest.raises(InputError, match='"selected" is 7'):
        traces_of_rows([("test:1", {**row, "selected": 7, "decision": "accepted"})], profile)
    with pytest.raises(ProfileError, match="eager"):
        traces_of_rows([], profile.model_copy(update={"exit": "eager"}))
    with pytest.raises(ProfileError, match="no reference"):
        look(profile.model_copy(update={"reference": ()}), TRAFFIC.log(5, 0))
    with pytest.raises(ConfigurationError, match="false_alarm_rate"):
        find_drift(profile, traces_of_rows([("test:1", row)], profile), false_alarm_rate=0.0)
    with pytest.raises(ConfigurationError, match="looks is 0"):
        find_drift(profile, traces_of_rows([("test:1", row)], profile), looks=0)


@pytest.mark.parametrize(
    "edit",
    [
        {"units": "x"},
        {"units": None},
        {"units": 0},
        {"units": 0, "counted": 0},
        {"abstained": -5},
        {"counted": 10**400},
        {"first_of_groups": []},
    ],
    ids=str,
)
def test_evidence_that_somebody_wrote_is_refused(edit):
    profile = calibrated()
    with pytest.raises(ProfileError, match="evidence: its counts"):  # TypeError, ZeroDivisionError and others before
        look(profile.model_copy(update={"evidence": {**profile.evidence, **edit}}), TRAFFIC.log(5, 0))


def test_the_command_exits_4_and_prints_what_to_do(tmp_path, capsys):
    profile = calibrated()
    profile.save(tmp_path / "profile.json")
    same = written(tmp_path / "same.jsonl", guarded(profile, TRAFFIC.log(300, 9)))
    other = written(tmp_path / "other.jsonl", guarded(profile, Population(size=4, middle=-1).log(300, 9)))
    call = partial(called, command)
    assert call(tmp_path / "profile.json", same) == 0
    assert "no drift found in 300 traces" in capsys.readouterr().out
    assert call(tmp_path / "profile.json", other) == 4
    said = capsys.readouterr().out
    assert "CHANGED" in said
    assert "what to do: " in said
    assert call(tmp_path / "profile.json", other, "--json") == 4
    assert json.loads(capsys.readouterr().out)["drift"] is True
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no row has a whole"):
        call(tmp_path / "profile.json", tmp_path / "empty.jsonl")


def test_each_gambler_stays_with_the_bet_that_pays():
    ranks = Ranks(0.01, np.arange(1000.0).tolist(), "seed")
    for number in range(100):
        ranks.add(900.0 + number / 1000, str(number))
    # A bet on p-values near 0.1 makes 1.25 times what the next one makes.
    assert [max(shares) > 0.8 for shares in ranks.state().shares] == [True] * 3


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("values", [3, 10**9])
def test_ranks_are_uniform_and_independent_with_and_without_ties(values, reference):
    ranked = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        ranks = Ranks(
            0.01, generator.integers(0, values, 20).tolist() if reference else [0, values // 2], str(seed), reference=reference
        )
        ranked.append([ranks.rank(float(score), str(n)) for n, score in enumerate(generator.integers(0, values, 20))])
    together = np.sort(np.ravel(ranked))
    assert np.max(np.abs(together - np.arange(1, 4001) / 4000)) < 0.03
    assert np.abs(np.corrcoef(np.array(ranked).T)[~np.eye(20, dtype=bool)]).mean() < 0.07


def means(make, repeats=3000, steps=30):
    values = []
    for seed in range(repeats):
        generator = np.random.default_rng(seed)
        process, step = make(generator)
        kept = []
        process._note = kept.append  # the value at the last step, not only the highest
        for number in range(steps):
            step(process, generator, number)
        values.append(math.exp(kept[-1]))
    return np.mean(values), np.std(values) / math.sqrt(repeats)


def test_the_capital_of_ranks_is_1_on_average():
    mean, error = means(
        lambda generator: (
            Ranks(0.01, generator.normal(size=10).tolist(), str(generator.random())),
            lambda ranks, generator, number: ranks.add(generator.normal(), str(number)),
        )
    )
    assert mean == pytest.approx(1.0, abs=4 * error)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_capital_of_shares_is_at_most_1_on_average(share):
    mean, error = means(
        lambda generator: (
            Shares(0.01, int(generator.binomial(50, share)), 50),
            lambda shares, generator, number: shares.add(generator.random() < share),
        )
    )
    assert mean <= 1.0 + 4 * error


def test_the_capital_against_a_promise_that_is_kept_is_at_most_1_on_average():
    mean, error = means(
        lambda generator: (
            Refutation(0.01),
            lambda refutation, generator, number: refutation.add(generator.random() < 0.3, 0.3),
        ),
        steps=5,
    )
    assert mean == pytest.approx(1.0, abs=4 * error)


def test_a_lower_limit_for_all_times_is_missed_no_more_often_than_stated():
    generator, missed = np.random.default_rng(0), 0
    for _ in range(300):
        ones = np.cumsum(generator.random(200) < 0.3)
        missed += any(lower_sequence(int(ones[n - 1]), n, 0.1) > 0.3 for n in range(5, 201, 5))
    assert missed <= binom.ppf(0.999, 300, 0.1)
    assert lower_sequence(0, 10, 0.1) == 0.0
    assert 0.6 < lower_sequence(100, 100, 0.1) < 1.0


def test_lower_limit_is_clopper_pearson():
    assert lower_limit(0, 10, 0.05) == 0.0
    assert lower_limit(10, 10, 0.05) == pytest.approx(0.05 ** (1 / 10))
    assert binom.sf(3 - 1, 20, lower_limit(3, 20, 0.05)) == pytest.approx(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("population", [TRAFFIC, Population(size=4, digits=0)], ids=["smooth", "ties"])
def test_the_stated_false_alarm_rate_is_kept(population):
    repeats = worlds(250)
    heard = alarms(population, population, repeats, (0.05, FALSE_ALARM_RATE))
    for rate, number in heard.items():
        assert number <= most(repeats, rate)
