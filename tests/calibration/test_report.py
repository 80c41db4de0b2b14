"""``report``: one file that loads nothing, says the consequence first, and shows what the log shows."""

from __future__ import annotations

import inspect
import math
import re
import shlex
from collections import Counter
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bonmini_guard.calibration import report
from bonmini_guard.calibration.choose import calibrate_accelerator, calibrate_guardrail
from bonmini_guard.calibration.figures import replay_log
from bonmini_guard.calibration.logs import load_log, log_of_rows
from bonmini_guard.calibration.report import build_report, slice_figures, slices
from bonmini_guard.calibration.sliding import cases
from bonmini_guard.cli import main
from bonmini_guard.commands import report as command
from bonmini_guard.errors import BonMiniGuardError, InputError
from bonmini_guard.policy.profile import GuardProfile
from tests.calibration.helpers import called, log_of, rows_of, written
from tests.calibration.populations import Population

CODE_LOG = Path(__file__).parents[3] / "shared" / "data" / "logs" / "humaneval_codegen_100.jsonl.gz"
LOG = Population(size=8).log(200, 0)
PROFILE = GuardProfile(mode="guardrail", schedule=(4, 4), thresholds=(0.5, 0.5))


def test_forty_rows_of_each_kind_and_the_nearest_forty_are_shown():
    log = Population(size=8).log(600, 0)
    shown = cases(log, PROFILE)
    kinds = Counter()
    for case in shown:
        loop = next((at for at, best in enumerate(case["best"]) if best is not None and best >= 0.5), None)
        kinds[loop is not None, case["good"][-1 if loop is None else loop]] += 1
    assert len(kinds) == 4
    # Each kind's own 40, and among all of them the 40 that decide by the least.
    assert min(kinds.values()) == 40
    assert 160 < len(shown) <= 200


class Loader(HTMLParser):
    """Collects what a browser would load, and the tags left open."""

    def __init__(self):
        super().__init__()
        self.loads, self.open = [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.loads += [named[key] for key in ("src", "href", "data", "action") if named.get(key)]
        if tag in ("link", "iframe", "img", "object"):
            self.loads.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    loader = Loader()
    loader.feed(text)
    assert loader.loads == []
    assert loader.open == []
    assert not re.search(r"url\((?!#)|@import", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_page_is_self_contained_and_begins_with_the_consequence():
    outcome = calibrate_guardrail(Population(size=8).log(400, 1), schedule=(4, 4), alpha=0.1)
    text = build_report(LOG, outcome.profile)
    check(text)
    first = text.index("Of 10,000 requests like these you would serve about")
    assert first < text.index("<h2")
    assert re.search(r"at most 1,000 of them bad, that is [\d.]+ % of those served, with 90 % confidence", text)


def test_an_accelerator_and_a_log_without_labels():
    outcome = calibrate_accelerator(LOG, schedule=(4, 4), epsilon=0.1)
    assert "acceptable at most 10 % of requests less often than best-of-8 (" in build_report(LOG, outcome.profile)
    blank = Population(size=8).log(100, 0)
    blank.labels[:] = np.nan
    text = build_report(blank, PROFILE)
    check(text)
    assert "This log has no labels" in text
    assert "an unknown number of them bad" in text


@pytest.mark.parametrize(("risk", "words"), [("bad_among_served", "of those served bad"), ("false_acceptance", "best answer is")])
def test_each_risk_is_put_in_its_own_words(risk, words):
    text = build_report(LOG, PROFILE.model_copy(update={"risk": risk, "alpha": 0.1, "delta": 0.0001}))
    assert "with 99.99 % confidence" in text  # it said 100
    assert words in text
    assert "this profile promises nothing" in build_report(LOG, PROFILE)


def test_slices_are_replays_of_their_rows_and_text_is_escaped():
    rows = [{**row, "topic": "<script>" if number % 2 else "maths"} for number, row in enumerate(rows_of(LOG))]
    log = log_of_rows(rows, keys=["topic"])
    parts = {name: part for name, part, _ in slice_figures(log, PROFILE, "topic")}
    whole = {name: part for name, part, _ in slice_figures(log_of_rows(rows[1::2], keys=["topic"]), PROFILE, "topic")}
    assert parts["<script>"] == whole["<script>"]
    assert sum(part["requests"] for part in parts.values()) == len(LOG)
    text = build_report(log, PROFILE, "topic")
    check(text)
    assert "&lt;script&gt;" in text
    many = log_of_rows([{**row, "topic": number} for number, row in enumerate(rows_of(LOG))], keys=["topic"])
    assert slice_figures(many, PROFILE, "topic")[-1][0] == "all others"
    table = [{**row, "topic": (1, 1.0, "", math.nan, None)[number % 5]} for number, row in enumerate(rows_of(LOG))]
    assert sorted(name for name, *_ in slice_figures(log_of_rows(table, keys=["topic"]), PROFILE, "topic")) == ["(none)", "1"]


def test_limits_of_slices_hold_for_all_of_them_at_once():
    """Of slices that are all alike, in most logs every one's limits hold the true rate."""
    profile, population = GuardProfile(mode="guardrail", schedule=(4, 4), thresholds=(0.0, 0.0)), Population(size=8)
    true = replay_log(population.log(40_000, 99), profile)["served_and_bad_rate"]
    missed = 0
    for seed in range(40):
        rows = [{**row, "topic": number % 5} for number, row in enumerate(rows_of(population.log(200, seed)))]
        found = slices(log_of_rows(rows, keys=["topic"]), profile, "topic").rows
        limits = [[float(one.split()[0]) / 100 for one in row[5].split(": ")[1].split(" to ")] for row in found]
        missed += any(not low <= true <= high for low, high in limits)
    assert missed <= 9  # at most 10 % of 40 in expectation; 10 or more has chance 0.005 there


def test_a_slice_of_which_nothing_is_served_has_no_limits_of_what_is():
    profile = GuardProfile(mode="guardrail", schedule=(4, 4), thresholds=(math.inf, math.inf), risk="bad_among_served")
    log = log_of_rows([{**row, "topic": "a"} for row in rows_of(Population(size=8).log(50, 1))], keys=["topic"])
    assert [row[5] for row in slices(log, profile, "topic").rows] == [""]


def test_rates_are_shown_per_request_and_per_prompt_where_prompts_repeat():
    repeated = replace(LOG, groups=np.arange(len(LOG)) // 4)
    text = build_report(repeated, PROFILE)
    check(text)
    assert "per request (200)" in text
    assert "per prompt or group (50)" in text
    assert "per prompt or group" not in build_report(LOG, PROFILE)


def test_a_handful_of_rows_gets_no_curve():
    text = build_report(LOG.take(np.arange(10)), PROFILE)
    check(text)
    assert "10 requests say little" in text
    assert '"fixed"' not in text


def test_a_log_labelled_in_part_gets_limits_and_its_curve():
    known = np.random.default_rng(0).random(LOG.labels.shape) < 0.5
    text = build_report(replace(LOG, labels=np.where(known, LOG.labels, np.nan)), PROFILE)
    check(text)
    assert "Labelled in part" in text
    assert '"fixed"' not in text


def test_offsets_of_prompts_are_beside_the_spread_of_their_answers():
    offsets = np.where(np.arange(len(LOG)) % 2, 30.0, -30.0)[:, None]
    said = report.prompt_offsets(replace(LOG, scores=np.where(np.arange(8) % 2, 1.0, -1.0) + offsets))
    assert "differ by a standard deviation of 30.00, answers to one prompt by 1.07" in said[0]
    assert said[0].split(":")[0] in build_report(LOG, PROFILE)
    assert report.prompt_offsets(replace(LOG, labels=np.full_like(LOG.labels, np.nan))) == []


def test_the_shapes_of_a_search_are_a_table():
    log = Population(size=8).log(1000, 1)
    profile = calibrate_accelerator(log, schedule=(4, 4), epsilon=0.1, search=True).profile
    page = build_report(LOG, profile)
    check(page)
    for shape in profile.evidence["front"]:
        assert f">{','.join(map(str, shape['schedule']))}</th><td" in page
        assert f">{shape['price']:.3g}<" in page
    assert "Shapes that were tried" not in build_report(LOG, PROFILE)


def test_every_number_has_a_function_that_says_how():
    for _, function in report.sources():
        assert "``" in inspect.getdoc(function), function.__qualname__


@pytest.mark.skipif(not CODE_LOG.exists(), reason="the code log is not part of the repository")
def test_on_the_code_log_more_draws_make_it_worse():
    profile = GuardProfile(mode="accelerator", schedule=(4,) * 8, thresholds=(0.5,) * 8)
    text = build_report(load_log(CODE_LOG), profile)
    assert "Over-optimisation: N = 4 serves more acceptable answers than N = 32" in text
    assert "more than two standard errors" in text
    assert "unscored" in text


def test_the_command_writes_one_file_or_nothing(tmp_path, capsys):
    log = written(tmp_path / "log.jsonl", rows_of(LOG))
    PROFILE.save(tmp_path / "profile.json")
    call = partial(called, command, log, "--profile", tmp_path / "profile.json")
    with pytest.raises(InputError, match="no row has the key"):
        call("-o", tmp_path / "report.html", "--slice", "none")
    with pytest.raises(BonMiniGuardError, match="cannot write there"):
        call("-o", tmp_path / "no" / "report.html")
    assert not (tmp_path / "report.html").exists()
    assert call("-o", tmp_path / "report.html") == 0
    said = capsys.readouterr().out
    assert "the means of prompts differ by a standard deviation of" in said
    assert "open it in a browser" in said
    check((tmp_path / "report.html").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "profile.json", "report.html"]


@pytest.mark.parametrize("schedule", [(1, 1), (1,)])
def test_a_log_whose_first_loops_failed_is_shown(schedule):
    log = replace(log_of([[math.nan, 1.0]] * 3, [[math.nan, 1.0]] * 3), traced=np.ones(3, dtype=bool))
    check(build_report(log, GuardProfile(mode="guardrail", schedule=schedule, thresholds=(0.5,) * len(schedule))))


def test_a_log_of_failed_draws_is_refused():
    rows = [{"id": str(n), "prompt": "p", "candidates": [{"text": None, "failed": True}] * 8} for n in range(5)]
    with pytest.raises(InputError, match="every draw failed"):
        build_report(log_of_rows(rows), PROFILE)


def test_limits_of_slices_count_best_efforts_and_leave_floors_out():
    log = log_of_rows([{**row, "topic": number % 2} for number, row in enumerate(rows_of(LOG))], keys=["topic"])
    best_of_n = GuardProfile(mode="accelerator", schedule=(4, 4), thresholds=(None, None))
    for row in slices(log, best_of_n, "topic").rows:
        bad, low, high = re.fullmatch(r"(\d+) of 100: ([\d.]+)\s% to ([\d.]+)\s%", row[5]).groups()
        assert 10 < int(bad) < 40
        assert float(low) < float(row[3].split()[0]) < float(high)
    floored = PROFILE.model_copy(update={"hopeless": (0.0, 0.0)})
    assert [row[5] for row in slices(log, floored, "topic").rows] == ["", ""]


def test_units_are_those_of_the_calibration(tmp_path, capsys):
    profile = tmp_path / "profile.json"
    rows = [{**row, "user": f"u{number // 2}"} for number, row in enumerate(rows_of(LOG))]
    log = written(tmp_path / "log.jsonl", rows)
    flags = ["--mode", "guardrail", "--alpha", "0.3", "--schedule", "4,4", "--group", "user"]
    assert main(["calibrate", str(log), *flags, "-o", str(profile)]) == 0
    told = " ".join(capsys.readouterr().out.split()).split("next: bonmini-guard ")[1]
    assert told.endswith("--group user -o report.html")
    output = tmp_path / "report.html"
    assert main([*shlex.split(told)[:-1], str(output)]) == 0
    assert "per prompt or group (100)" in output.read_text()


def test_each_reason_for_leaving_rows_out_is_explained():
    log = replace(LOG, left_out=dict.fromkeys(["trained_on", "explore_missed", "not_in_the_labelled_set"], 3))
    assert all(why for _, _, why in report._left_out(log.left_out).rows)


@pytest.mark.parametrize("sampling", [None, "random"])
def test_a_slice_whose_labels_are_missing_where_draws_did_not_fail_is_left_out(sampling):
    rows = [{**row, "topic": "labelled"} for row in rows_of(LOG)]
    rows += [{"id": "bare", "prompt": "b", "topic": "none", "candidates": [{"text": "x", "score": 1.0}] * 16}]
    rows += [{"id": "lost", "prompt": "l", "topic": "none", "candidates": [{"failed": True}] * 16}]
    log = log_of_rows([row | ({"label_sampling": sampling} if sampling else {}) for row in rows], keys=["id", "topic"])
    assert [name for name, *_ in slice_figures(log, PROFILE, "topic")] == ["labelled"]
    check(build_report(log, PROFILE, "topic"))


def test_slices_are_of_the_set_that_was_fixed_for_labelling_as_all_other_figures_are():
    rows = [{**row, "topic": "of the set", "label_sampling": "random"} for row in rows_of(LOG)]
    rows += [{**row, "id": f"other {row['id']}", "prompt": f"other {row['id']}", "topic": "others"} for row in rows_of(LOG)]
    log = log_of_rows(rows, keys=["topic"])
    assert [(name, part["requests"]) for name, part, _ in slice_figures(log, PROFILE, "topic")] == [("of the set", len(LOG))]
    assert replay_log(log, PROFILE)["requests"] == len(LOG)


def test_a_log_without_labels_in_which_every_draw_of_a_row_failed():
    log = replace(LOG, labels=np.full_like(LOG.labels, np.nan), scores=LOG.scores.copy())
    log.scores[0] = np.nan
    found = replay_log(log, PROFILE)
    assert (found["requests"], found["served_and_bad_rate"]) == (len(LOG), None)
    check(build_report(log, PROFILE))


def test_of_groups_labelled_in_part_a_labelled_row_counts_as_in_calibrate():
    rows = [{**row, "group": str(number // 8), "topic": "all"} for number, row in enumerate(rows_of(LOG))]
    for number, row in enumerate(rows):
        if number % 8 != number // 8 % 8:
            row["candidates"] = [one | {"acceptable": None} for one in row["candidates"]]
    log = log_of_rows(rows, keys=["id", "topic"])
    assert "per prompt or group" not in build_report(log, PROFILE)  # one row of each group is labelled, and says all
    assert " of 25: " in slices(log, PROFILE, "topic").rows[0][5]


@pytest.mark.parametrize(
    "promise", [{"mode": "guardrail", "risk": "bad_among_served", "alpha": 0.1}, {"mode": "accelerator", "epsilon": 0.1}]
)
def test_a_log_in_which_no_answer_is_labelled_that_would_be_chosen_says_nothing(promise):
    # a ZeroDivisionError, or a TypeError
    log = replace(log_of([[1.0, -1.0]] * 6, [[math.nan, 1.0]] * 6), extra={"topic": ("a", "b") * 3})
    page = build_report(log, GuardProfile(schedule=(2,), thresholds=(-2.0,), delta=0.1, **promise), "topic")
    assert "This log says nothing of this profile" in page


@pytest.mark.parametrize("front", ["x", [1], [{"schedule": 4}], [{"schedule": [4]}]])
def test_a_front_that_was_edited_by_hand_is_told_in_one_line(front):
    with pytest.raises(InputError, match=r"evidence\.front"):
        build_report(LOG, PROFILE.model_copy(update={"evidence": {"front": front}}))


def test_a_number_of_calibrations_that_was_edited_by_hand_is_shown_as_it_stands():
    promise = {"risk": "served_and_bad", "alpha": 0.4, "delta": 0.1, "evidence": {"calibrations": "<many"}}
    assert "one of &lt;many calibrations" in build_report(LOG, PROFILE.model_copy(update=promise))
