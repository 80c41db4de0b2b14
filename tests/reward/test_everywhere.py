"""Every kind of scorer, wherever a reward model goes: guard, score, serve and inspect say the same."""

from __future__ import annotations

import json
import re
from itertools import pairwise, product
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bonmini_guard import BestOfMiniN, ScorerSpec
from bonmini_guard.cli import main
from bonmini_guard.policy.policy import Action, accelerator, guardrail, run
from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.reward.spec import LOCAL
from bonmini_guard.testing import FakeGenerator

from .every_kind import ANSWERS, KINDS, PROMPT, declared, kind_of
from .test_kinds import GUARDS, paired, saved
from .tiny import CHATML

POLICIES = {"guardrail": guardrail, "accelerator": accelerator}
READY = sorted((Path(__file__).parents[2] / "examples" / "scorers").glob("*.toml"))


@pytest.mark.filterwarnings("ignore::UserWarning")
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
        # guard: what the policy says of the logged scores is what is decided, at thresholds between them,
        # whose last digits depend on what else is in a batch
        scorer, levels = load_scorer(spec), sorted(set(logged))
        cuts = [levels[0] - 1, *((low + high) / 2 for low, high in pairwise(levels) if high - low > 1e-3), levels[-1] + 1]
        assert len(cuts) > 2
        for mode, schedule, cut in product(POLICIES, [[1] * 5, [2, 3], [5]], cuts):
            ran = run(POLICIES[mode](schedule, cut), logged)
            guard = BestOfMiniN(generator=FakeGenerator(ANSWERS), reward_model=scorer, mode=mode, schedule=schedule, threshold=cut)
            result = guard.run(PROMPT)
            served = "best_effort" if ran.decision.action is Action.SERVE else "abstained"
            assert result.decision == ("accepted" if ran.decision.accepted else served)
            assert (result.draws, result.loops) == (ran.draws, ran.loops)
            assert result.selected.message.text == ANSWERS[ran.decision.index]
            assert result.score == pytest.approx(logged[ran.decision.index], abs=1e-4)
            assert result.acceptance_probability is not None
        # serve
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


ARCHITECTURES = {
    **{name.title(): family for name, family in GUARDS.items()},
    "Gemma 2": GUARDS["gemma2"],
    "BERT": (BertForSequenceClassification, BertConfig, {}),
    "RoBERTa": (RobertaForSequenceClassification, RobertaConfig, {}),
    "DeBERTa-v2": (DebertaV2ForSequenceClassification, DebertaV2Config, {"type_vocab_size": 2}),
}


@pytest.mark.parametrize("path", [path for path in READY if ScorerSpec.load(path).kind in LOCAL], ids=lambda path: path.stem)
def test_ready_specs_work_on_the_architecture_that_they_name(tmp_path, path):
    spec = ScorerSpec.load(path)
    model, config, more = ARCHITECTURES[re.search(r"Architecture checked \(([^,)]*?)(?: with [^,)]*)?[,)]", path.read_text())[1]]
    names = [*spec.labels.wanted, *spec.labels.unwanted, "another"] if spec.labels else ["score"]
    if spec.kind == "template":
        model = LlamaForSequenceClassification
    elif spec.token is not None:
        more = {**more, "words": (*spec.token.wanted, *spec.token.unwanted)}
    if spec.token is None:
        more = {**more, "id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    decoder = spec.kind in ("template", "token")
    folder = saved(tmp_path, model, config, CHATML if decoder else None, **more)
    scorer = load_scorer(spec.model_copy(update={"model": str(folder if decoder else paired(folder))}), device="cpu")
    scores = scorer.score([HumanMessage(PROMPT)], [AIMessage(answer) for answer in ANSWERS])
    assert max(scores) - min(scores) > 1e-2
    assert scorer.has_zero == (spec.kind in ("labels", "token"))
    scorer.close()


def test_ten_ready_specs_ship():
    assert len([path for path in READY if ScorerSpec.load(path).model]) >= 10


def test_a_ready_check_works():
    scorer = load_scorer(next(path for path in READY if path.stem == "unit-tests"))
    assert scorer.score([HumanMessage("Add.")], [AIMessage("def add(a, b): return a + b")]) == [6]
