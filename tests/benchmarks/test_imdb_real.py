"""The real model's IMDB experiment: its labels by hand, and its committed figures from the committed logs."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from benchmarks.imdb_real.evaluate import NAMES, SIZES, Resampled
from benchmarks.imdb_real.human import window
from benchmarks.imdb_real.keep import HERE, kept, log_of
from benchmarks.imdb_real.keep import NAMES as TRUTHS
from benchmarks.imdb_real.label import choice_rows, cut_of, log_row
from benchmarks.tables import read_rows
from bonmini_guard.calibration.logs import log_of_rows
from bonmini_guard.cli import main


def _row(*scores):
    return {"id": "a", "prompt": "p", "candidates": [{"text": f" {s}", "tokens": 1, "score": s} for s in scores]}


def test_a_fifth_of_the_prompts_have_no_answer_above_the_cut():
    rows = [_row(float(best), best - 3.0) for best in range(11)]
    cut = cut_of(rows)
    assert cut == 2.0
    assert [any(c["acceptable"] for c in log_row(row, cut)["candidates"]) for row in rows] == [False] * 3 + [True] * 8


def test_labellers_take_the_better_answer_or_none_by_utility():
    row = log_row(_row(9.0, -9.0, -20.0), 0.0)
    choices = {tuple(pair["responses"]): pair["choice"] for pair in choice_rows(row, np.random.default_rng(0))}
    assert choices == {(" 9.0", " -9.0"): 0, (" 9.0", " -20.0"): 0, (" -9.0", " -20.0"): "none"}


def test_windows_are_parted_as_prompts_and_answers_are():
    prompt, answer = window(" ".join(map(str, range(200))), random.Random(0))
    words = (prompt + answer).split()
    assert len(prompt.split()) == 18
    assert 30 <= len(words) <= 62
    assert [int(word) for word in words] == list(range(int(words[0]), int(words[0]) + len(words)))


def test_no_text_is_kept():
    scored = log_row(_row(1.0, -1.0), 0.0) | {"scored_by": "sha256:0"}
    for candidate, score in zip(scored["candidates"], (0.25, -0.25), strict=True):
        candidate["score"] = score
    row = kept(scored, scored)
    assert row["prompt"] == "a"
    assert [set(c) for c in row["candidates"]] == [{"text", "score", "twin", "utility", "acceptable"}] * 2
    assert [c["text"] for c in row["candidates"]] == ["", ""]


RESULTS = json.loads((HERE.parent / "results" / "imdb_real.json").read_text(encoding="utf-8"))
SHOWN = [name for name in TRUTHS if name in RESULTS]


@pytest.mark.parametrize("truth", SHOWN)
def test_calibrate_and_replay_give_the_committed_figures(truth, tmp_path, capsys):
    profile, results = tmp_path / "guardrail.json", RESULTS[truth]
    asked = ["--mode", "guardrail", "--risk", "false_acceptance", "--alpha", "0.1", "--delta", "0.1", "-o", str(profile)]
    assert main(["calibrate", str(log_of(truth, "calibrate")), *asked]) == 0
    assert capsys.readouterr().out.splitlines()[0] == results["guardrail"]["sentence"]
    main(["replay", str(log_of(truth, "evaluate")), "--profile", str(profile), "--json"])
    figures = json.loads(capsys.readouterr().out)
    for name in NAMES:
        assert figures[name] == pytest.approx(results["guardrail"][name][0]), name
        assert figures["best_of_n"][name] == pytest.approx(results["best_of_32"][name][0]), name
        assert figures["best_of_n_at_zero"][name] == pytest.approx(results["reward"]["best_of_n_at_zero"]["32"][name][0]), name


@pytest.mark.parametrize("truth", SHOWN)
def test_what_the_results_say_of_the_committed_logs(truth):
    held_out, results = read_rows(log_of(truth, "evaluate")), RESULTS[truth]
    held = Resampled(log_of_rows(held_out))
    committed = results["reward"]["best_of_n_at_zero"]
    for n in SIZES:
        served_bad = held.settled("guardrail", (n,), (0.0,)).served_bad.sum()
        assert committed[str(n)]["false_acceptances"][0] == pytest.approx(served_bad)
    assert len(held_out) == results["draws"]["evaluate"]["prompts"]
    growth = [committed[str(n)]["false_acceptance_rate"][0] for n in SIZES]
    assert growth == sorted(growth)
    held.samples = held.samples[:2]
    for name, (value, *_) in held.figures(held.settled("guardrail", (32,), (0.0,))).items():
        assert value == pytest.approx(committed["32"][name][0]), name
