"""Whatever kind of scorer judges, nothing is served that it has not read and passed."""

from __future__ import annotations

import contextlib
import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from bonmini_guard import BestOfMiniN, ScorerSpec
from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.reward.declared import load_scorer
from bonmini_guard.reward.spec import LOCAL
from tests.adapters.decision_server import DecisionServer
from tests.adapters.loopback import InThread
from tests.adapters.reward_server import RewardServer
from tests.test_served_was_scored import CASES, MESSAGES, Generator, visible

from .every_kind import KINDS, declared, kind_of
from .test_kinds import saved
from .tiny import CHATML

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def sense(seen):
    return -1.0 if "bad" in str(seen) else 1.0


class Senses:
    """In the place of a model's batches: scores by whether a word is among the tokens that reach the model."""

    def __init__(self, model):
        self._inner, self._decode = model._batcher, model._tokenizer.decode

    def submit(self, work):
        for text in [text for group in work._groups for text in group.texts]:
            work.settle({text: sense(self._decode(text))})

    def close(self):
        self._inner.close()


class WholeTurn(DecisionServer):
    """Believes by all that it is shown of the last turn."""

    def reply(self, path, body):
        last = json.dumps(body["state"][-1], ensure_ascii=False)
        return super().reply(path, {**body, "state": [{"role": "assistant", "content": last}]})


@contextlib.contextmanager
def sensing(kind, folder):
    """The keys of a spec whose scorer gives a passing score to whatever does not show it the word."""
    if kind in ("route", "our route", "tokens' route"):
        decode = str
        more = {"route": {"server": "vllm", "name": "rerank"}, "has_zero": True}
        if kind == "our route":
            more = {"route": {"server": "bonmini"}}
        elif kind == "tokens' route":
            saved(folder / "model", LlamaForSequenceClassification, LlamaConfig, CHATML, num_labels=1)
            decode = AutoTokenizer.from_pretrained(folder / "model").decode
            more = {"route": {"server": "vllm", "tokenizer": str(folder / "model")}, "has_zero": True}
        with InThread(RewardServer(lambda one: sense(decode(one)) + len(str(one)) / 1e4)) as server:
            yield {"endpoint": server.url, **more}
    elif kind in ("judge", "served token"):
        with declared(kind, folder, sense) as keys:
            yield keys
    elif kind == "decision":
        with InThread(WholeTurn(lambda text: 0.9 if sense(text) > 0 else 0.1)) as server:
            yield {"endpoint": server.url, "model": "m", "decision": {"question": "Is it fine?"}}
    elif kind in LOCAL:
        with declared(kind, folder) as keys:
            yield keys
    else:
        check = {"type": "regex", "pattern": "bad", "absent": True}
        part = {"kind": "check", "check": check}
        yield {"check": check} if kind == "check" else {kind: [part, part], "has_zero": True}


@pytest.mark.parametrize("kind", [*KINDS, "our route", "tokens' route"])
def test_no_part_is_served_that_a_scorer_of_the_kind_did_not_read_and_pass(tmp_path, kind):
    with sensing(kind, tmp_path) as keys:
        scorer = load_scorer(ScorerSpec(kind=kind_of(kind), **keys))
        if kind in LOCAL:
            model = getattr(scorer, "inner", scorer)
            model._batcher = Senses(model)

        def guarded(messages, **settings):
            return BestOfMiniN(generator=Generator(messages, False, False), reward_model=scorer, timeout=20, **settings).run("q")

        @given(st.lists(MESSAGES, min_size=1, max_size=3), st.sampled_from(["text", "judge"]), st.sampled_from(["loop", "eager"]))
        @settings(max_examples=CASES // 20, deadline=None, derandomize=CASES == 500, suppress_health_check=list(HealthCheck))
        def holds(messages, turns, exit):
            try:
                result = guarded(messages, schedule=[1, 2], tool_turns=turns, exit=exit)
            except BonMiniGuardError:
                return
            if result.served:
                judged = result.decision == "accepted"
                assert judged or (turns == "text" and result.reason == "tool_call")
                assert "bad" not in visible(result.message, calls=judged)

        logging.disable(logging.WARNING)
        try:
            holds()
            # All of this would hold of a scorer that lets nothing through.
            assert guarded([AIMessage("good")], schedule=[1]).decision == "accepted"
            assert guarded([AIMessage("bad")], schedule=[1]).decision == "abstained"
        finally:
            logging.disable(logging.NOTSET)
            scorer.close()
