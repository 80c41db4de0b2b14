"""``replay_log`` and the replay command: the figures' definitions."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bonmini_guard.calibration.figures import SHOWN, one_order_figures, replay_log
from bonmini_guard.calibration.sliding import slider
from bonmini_guard.commands import replay as command
from bonmini_guard.errors import InputError, ProfileError
from bonmini_guard.policy.policy import Action, run
from bonmini_guard.policy.profile import GuardProfile
from tests.calibration.helpers import called, log_of, rows_of, written

LOG = log_of([[2.0, 1.0], [2.0, -1.0], [0.5, 0.4], [-1.0, -2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


def guardrail(**changes):
    return GuardProfile(**{"mode": "guardrail", "schedule": (2,), "thresholds": (1.5,), **changes})


def test_guardrail_figures():
    figures = replay_log(LOG, guardrail())
    expected = {
        "requests": 4,
        "served": 2,
        "accepted": 2,
        "best_effort": 0,
        "abstained": 2,
        "false_acceptances": 1,
        "missed_acceptances": 1,
        "false_acceptance_rate": 0.5,
        "served_and_bad_rate": 0.25,
        "bad_among_served_rate": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "recall_vs_best_of_n": 0.5,
        "acceptable_rate": 0.25,
        "mean_draws": 2,
        "mean_loops": 1,
    }
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    assert figures["best_of_n"]["served"] == figures["best_of_n"]["best_effort"] == 4
    assert figures["best_of_n_at_zero"]["served"] == figures["best_of_n_at_zero"]["accepted"] == 3
    assert set(expected) == set(figures["best_of_n"])


def test_a_rate_with_denominator_zero_is_null():
    figures = replay_log(LOG, guardrail(thresholds=(None,)))
    assert (figures["served"], figures["precision"], figures["bad_among_served_rate"]) == (0.0, None, None)
    assert math.copysign(1.0, figures["false_acceptances"]) == 1.0


def test_the_score_transform_is_applied():
    assert replay_log(LOG, guardrail(thresholds=(4.0,), score_transform={"a": 2.0, "b": 0.5}))["served"] == pytest.approx(2)


def test_rows_in_memory_and_accelerator():
    figures = replay_log(rows_of(LOG), guardrail(mode="accelerator"))
    assert (figures["accepted"], figures["best_effort"], figures["abstained"]) == pytest.approx((2, 2, 0))


def test_without_labels_only_the_other_figures_are_given():
    figures = replay_log(log_of([[1.0]], [[math.nan]]), guardrail(schedule=(1,)))
    assert (figures["requests"], figures["precision"], figures["best_of_n"]["acceptable_rate"]) == (1.0, None, None)


def test_eager_profiles_and_short_rows_are_refused():
    with pytest.raises(ProfileError, match="eager"):
        replay_log(LOG, guardrail(exit="eager"))
    with pytest.raises(InputError, match="fewer than the budget"):
        replay_log(LOG, guardrail(schedule=(3,)))


def call(tmp_path, capsys, *flags):
    log, profile = written(tmp_path / "log.jsonl", rows_of(LOG)), tmp_path / "profile.json"
    log.write_text(log.read_text() + '{"torn')
    profile.write_text('{"mode": "guardrail", "schedule": [2], "thresholds": [1.5]}')
    assert called(command, log, "--profile", profile, *flags) == 0
    return capsys.readouterr()


def test_command_prints_json(tmp_path, capsys):
    said = call(tmp_path, capsys, "--json")
    assert json.loads(said.out)["served_and_bad_rate"] == pytest.approx(0.25)
    assert "1 torn" in said.err


def test_command_prints_a_table(tmp_path, capsys):
    said = call(tmp_path, capsys)
    assert "25.00 %" in said.out
    assert "best-of-2" in said.out


def test_in_one_order_nothing_is_served_where_every_draw_failed():
    log = log_of([[math.nan, math.nan], [1.0, 2.0]], [[math.nan, math.nan], [1.0, 1.0]])
    profile = guardrail(mode="accelerator", schedule=(1, 1), thresholds=(5.0, 5.0))
    exact, one = replay_log(log, profile), one_order_figures(log, profile)
    assert (one["served"], one["abstained"], one["false_acceptances"]) == (1, 1, 0)
    for here, there in ((one, exact), (one["best_of_n"], exact["best_of_n"])):
        assert [here[key] for key, _, _ in SHOWN] == pytest.approx([there[key] for key, _, _ in SHOWN])


@pytest.mark.parametrize("mode", ["guardrail", "accelerator"])
def test_in_one_order_floors_give_requests_up_too(mode):
    log = log_of([[0.1, 3.0], [2.0, 2.0], [0.7, 0.6], [0.1, 0.1]], [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    log = replace(log, traced=np.ones(4, dtype=bool))
    found = one_order_figures(log, guardrail(mode=mode, schedule=(1, 1), thresholds=(1.0, 1.0), hopeless=(0.5, 0.0)))
    assert (found["accepted"], found["best_effort"], found["mean_draws"]) == (1, 3 if mode == "accelerator" else 0, 1.25)
    assert found["false_acceptances"] == (2 if mode == "accelerator" else 0)


def test_in_one_order_nothing_is_served_of_what_a_floor_gave_up_before_any_draw_had_a_score():
    log = replace(log_of([[math.nan, 1.0]], [[math.nan, 1.0]]), traced=np.ones(1, dtype=bool))
    profile = guardrail(mode="accelerator", schedule=(1, 1), thresholds=(2.0, 2.0), hopeless=(-1.0, -1.0))
    assert run(profile.policy(), [None, 1.0]).decision.action is Action.ABSTAIN
    found = one_order_figures(log, profile)
    assert (found["served"], found["abstained"], found["false_acceptances"]) == (0, 1, 0)


def test_a_rate_of_nothing_has_limits_too():
    log = log_of([[2.0, 1.0], [0.5, 0.4], [0.3, 0.2]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = one_order_figures(log, guardrail())
    assert found["false_acceptance_rate"] == 0
    assert found["intervals"]["false_acceptance_rate"] == pytest.approx([0.0, 1 - math.sqrt(0.05)])  # none of two


def test_what_best_of_n_serves_has_no_figures_where_nobody_asked_for_its_labels():
    log = log_of([[2.0, 3.0], [1.0, -1.0], [-1.0, -2.0]], [[1.0, math.nan], [0.0, math.nan], [math.nan, math.nan]])
    log = replace(log, asked=np.ones(3, dtype=bool), traced=np.ones(3, dtype=bool))
    profile = guardrail(mode="accelerator", schedule=(1, 1), thresholds=(0.5, 0.5))
    found = replay_log(log, profile)
    assert (found["served"], found["best_effort"], found["order"], found["intervals"]) == (3, 1, "one", {})
    for column in (found, found["best_of_n"], found["best_of_n_at_zero"]):
        assert column["false_acceptances"] is column["precision"] is column["recall"] is None
        assert column["served_and_bad_rate"] is column["acceptable_rate"] is None
    assert found["recall_vs_best_of_n"] is None


@pytest.mark.parametrize(("risk", "known"), [("served_and_bad", False), ("false_acceptance", True)])
def test_refusals_have_no_figures_where_nobody_asked_for_their_labels(risk, known):
    log = log_of([[2.0, 1.0], [1.8, 1.0], [0.5, 0.4], [0.3, 0.2]], [[1.0, 0.0], [0.0, 0.0], [math.nan, math.nan], [0.0, 0.0]])
    log = replace(log, asked=np.ones(4, dtype=bool))
    profile = guardrail(risk=risk, alpha=0.5)
    found = replay_log(log, profile)
    assert (found["served"], found["abstained"], found["served_and_bad_rate"]) == (2, 2, 0.25)
    unsure = [found[name] for name in ("missed_acceptances", "recall", "false_acceptance_rate")]
    assert unsure == ([1, 0.5, 0.5] if known else [None, None, None])
    assert ("false_acceptance_rate" in found["intervals"]) is known
    # where every refusal is labelled they are all there
    stricter = replay_log(log.take(np.array([0, 1, 3])), profile)
    assert (stricter["missed_acceptances"], stricter["recall"], stricter["false_acceptance_rate"]) == (0, 1, 0.5)
    moved = slider(log, profile, found)["figures"]
    assert [each is None for each in moved["recall"]] == [not known and each < 3 for each in moved["served"]]


def test_recall_against_best_of_n_compares_shares_where_fewer_rows_count():
    log = log_of([[2.0, 3.0], [2.0, 3.0], [2.0, 1.0]], [[math.nan, 1.0], [math.nan, 1.0], [1.0, 0.0]])
    found = replay_log(replace(log, traced=np.ones(3, dtype=bool)), guardrail(schedule=(1, 1), thresholds=(0.5, 0.5)))
    assert (found["requests"], found["best_of_n"]["requests"]) == (1, 3)
    assert found["recall_vs_best_of_n"] == found["best_of_n"]["acceptable_rate"] == 1.0
