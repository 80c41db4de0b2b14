"""Every kind of scorer, wherever a reward model goes: guard, score, serve and inspect say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from bonmini_guard import BestOfMiniN, ScorerSpec
from bonmini_guard.cli import main
from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.testing import FakeGenerator

from .every_kind import ANSWERS, KINDS, PROMPT, declared, kind_of

READY = sorted((Path(__file__).parents[2] / "examples" / "scorers").glob("*.toml"))


@pytest.mark.filterwarnings("ignore:uncalibrated")
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_goes_everywhere_and_says_the_same(tmp_path, capsys, kind):
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from bonmini_guard.server.app import ScoringServer

    with declared(kind, tmp_path) as keys:
        spec = tmp_path / "scorer.json"
        spec.write_text(json.dumps({"kind": kind_of(kind), **keys}))
        log = tmp_path / "log.jsonl"
        candidates = [{"text": answer, "acceptable": "fine" in answer} for answer in ANSWERS]
        log.write_text(json.dumps({"id": "a", "prompt": PROMPT, "candidates": candidates}) + "\n")
        # score
        assert main(["score", str(log), "--reward-model", str(spec), "-o", str(tmp_path / "out.jsonl")]) == 0
        row = json.loads((tmp_path / "out.jsonl").read_text())
        logged = [one["score"] for one in row["candidates"]]
        # guard: what the policy says of the logged scores is what is decided, at a threshold between two of them
        best = max(logged)
        threshold = (best + max([score for score in logged if score < best], default=best - 1)) / 2
        passing = next(place for place, score in enumerate(logged) if score >= threshold)
        guard = BestOfMiniN(generator=FakeGenerator(ANSWERS), reward_model=spec, schedule=[1] * 5, threshold=threshold)
        result = guard.run(PROMPT)
        assert (result.decision, result.draws, result.selected.message.text) == ("accepted", passing + 1, ANSWERS[passing])
        assert result.score == pytest.approx(logged[passing], abs=1e-4)
        assert result.acceptance_probability is not None
        # serve
        scorer = load_scorer(spec)
        assert row["scored_by"] == scorer.fingerprint()
        with TestClient(ScoringServer(scorer).app, base_url="http://127.0.0.1") as client:
            answer = client.post("/score", json={"messages": [{"role": "user", "content": PROMPT}], "candidates": ANSWERS}).json()
        assert answer["scores"] == pytest.approx(logged, abs=1e-4)
        assert answer["has_zero"] is True
        # inspect
        capsys.readouterr()
        assert main(["inspect", str(spec), "--examples", str(log), "--json"]) in (0, 4)
        assert json.loads(capsys.readouterr().out)["scores"] == [pytest.approx(logged, abs=1e-4)]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_specs_say_what_they_say(path):
    spec, text = ScorerSpec.load(path), path.read_text("utf-8")
    assert "rchitecture checked" in text or "not run" in text or spec.kind in ("judge", "check")
    if spec.kind in ("judge", "check"):
        scorer = load_scorer(spec)
        assert scorer.has_zero
        scorer.close()


def test_ten_ready_specs_ship():
    assert len([path for path in READY if ScorerSpec.load(path).model]) >= 10


def test_a_ready_check_works():
    scorer = load_scorer(next(path for path in READY if path.stem == "unit-tests"))
    assert scorer.score([HumanMessage("Add.")], [AIMessage("def add(a, b): return a + b")]) == [6]
