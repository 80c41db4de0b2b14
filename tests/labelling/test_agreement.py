"""Agreement between annotators."""

from __future__ import annotations

import json

import pytest

from bonmini_guard.labelling.agreement import agreement, describe
from tests.labelling.helpers import judge_all, row, run, say, session_of

ROWS = [row(str(i)) for i in range(8)]


def test_alpha_is_krippendorffs(tmp_path):
    session = session_of(tmp_path, ROWS)
    said = {"ann": [0, 0, 0, 0, 1, 1, "none", "none"], "bob": [0, 0, 0, 1, 1, 1, "none", 0]}
    order = [item.key for item in session.items]
    for name, chosen in said.items():
        judge_all(session, name, lambda item, chosen=chosen: chosen[order.index(item.key)])
    figures = agreement(session.ledger)
    # By hand, alpha = 1 - (n - 1) * off-diagonal coincidences / sum over pairs of categories n_c * n_k: two of eight units
    # differ (4 of 16 coincidences), the categories occur 8, 5 and 3 times.
    assert figures["alpha"] == pytest.approx(1 - 15 * 4 / (256 - 64 - 25 - 9), abs=1e-6)
    # "none" or not: one unit differs, 3 and 13 times.
    assert figures["alpha_acceptable"] == pytest.approx(1 - 15 * 2 / (256 - 9 - 169), abs=1e-6)
    assert figures["agreeing_pairs"] == 0.75
    assert (figures["items"], figures["items_judged_by_several"]) == (8, 8)
    assert figures["annotators"] == {"ann": {"labels": 8, "none": 0.25}, "bob": {"labels": 8, "none": 0.125}}
    assert "alpha: 0.620" in describe(figures)


def test_one_annotator_has_nobody_to_agree_with(tmp_path):
    session = session_of(tmp_path, ROWS)
    judge_all(session, "ann", lambda item: 0)
    figures = agreement(session.ledger)
    assert figures["alpha"] is figures["agreeing_pairs"] is None
    assert "no agreement to measure" in describe(figures)


def test_alpha_is_undefined_where_everybody_always_said_the_same(tmp_path):
    session = session_of(tmp_path, ROWS)
    for name in ("ann", "bob", "cem"):
        judge_all(session, name, lambda item: "none")
    figures = agreement(session.ledger)
    assert figures["alpha"] is None
    assert figures["agreeing_pairs"] == 1.0
    assert "undefined" in describe(figures)


def test_the_command_prints_it_without_the_log(tmp_path, capsys):
    session = session_of(tmp_path, ROWS)
    item = session.standing("ann").item
    say(session, "ann", item, 0)
    say(session, "bob", item, "none")
    assert run("--agreement", session.path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["alpha"] == pytest.approx(0.0)
    assert run("--agreement", session.path) == 0
    assert "ann: 1 labels, 0 % neither" in capsys.readouterr().out
