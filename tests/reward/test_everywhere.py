"""Every kind of scorer, wherever a reward model goes: guard, score, serve and inspect say the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from bonmini_guard import BestOfMiniN, ScorerSpec
from bonmini_guard.cli import main
from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.testing import FakeGenerator
from tests.adapters.decision_server import DecisionServer
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.reward_server import InThread, RewardServer

from .test_kinds import LABELS, saved
from .tiny import CHATML

PROMPT, ANSWERS = "the film was", ["dull plot", "awful", "good and very fine", "the end", "fine cast"]
REGEX = {"kind": "check", "check": {"type": "regex", "pattern": "good|fine"}}
READY = sorted((Path(__file__).parents[2] / "examples" / "scorers").glob("*.toml"))


@contextlib.contextmanager
def declared(kind, folder):
    """The keys of a spec of each kind."""
    model = {"model": str(folder / "model")}
    if kind == "template":
        saved(folder / "model", LlamaForSequenceClassification, LlamaConfig, CHATML, num_labels=1)
        yield {**model, "has_zero": True}
    elif kind == "pair":
        from tokenizers import processors
        from transformers import AutoTokenizer

        saved(folder / "model", BertForSequenceClassification, BertConfig, num_labels=1)
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer.save_pretrained(folder / "model")
        yield {**model, "zero": {"shift": 0.5}}
    elif kind == "labels":
        saved(folder / "model", BertForSequenceClassification, BertConfig, **LABELS)
        yield {**model, "labels": {"wanted": ["safe"], "inputs": "answer"}}
    elif kind == "token":
        saved(folder / "model", LlamaForCausalLM, LlamaConfig, CHATML)
        yield {**model, "token": {"wanted": [" good"], "unwanted": [" dull"]}}
    elif kind == "route":
        with InThread(RewardServer(lambda pair: len(pair[1]) - 7.5)) as server:
            yield {"endpoint": server.url, "has_zero": True, "route": {"server": "vllm", "name": "rerank"}}
    elif kind == "judge":
        with InThread(OpenAIServer()) as server:
            server.text = lambda body, _: f"VERDICT: {'' if 'fine' in body['messages'][1]['content'] else 'UN'}ACCEPTABLE"
            yield {"endpoint": server.url, "model": "tiny", "judge": {"rubric": "It says so."}}
    elif kind == "decision":
        with InThread(DecisionServer(lambda text: {"good and very fine": 0.9, "fine cast": 0.7}.get(text, 0.2))) as server:
            yield {"endpoint": server.url, "model": "m", "decision": {"question": "Does the answer like the film?"}}
    elif kind == "check":
        yield {"check": REGEX["check"]}
    else:
        parts = [{**REGEX, "weight": 2.0}, {"kind": "check", "check": {"type": "regex", "pattern": "awful", "absent": True}}]
        yield {kind: parts, "has_zero": True}


@pytest.mark.filterwarnings("ignore:uncalibrated")
@pytest.mark.parametrize("kind", ["template", "pair", "labels", "token", "route", "judge", "decision", "check", "all", "sum"])
def test_a_kind_goes_everywhere_and_says_the_same(tmp_path, capsys, kind):
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from bonmini_guard.server.app import ScoringServer

    with declared(kind, tmp_path) as keys:
        spec = tmp_path / "scorer.json"
        spec.write_text(json.dumps({"kind": kind, **keys}))
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
