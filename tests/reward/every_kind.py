"""A spec of each kind, on tiny random checkpoints and loopback servers."""

from __future__ import annotations

import contextlib
import math

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from tests.adapters.decision_server import DecisionServer
from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.reward_server import RewardServer

from .test_kinds import LABELS, paired, saved
from .tiny import CHATML

PROMPT, ANSWERS = "the film was", ["dull plot", "awful", "good and very fine", "the end", "fine cast"]
REGEX = {"kind": "check", "check": {"type": "regex", "pattern": "good|fine"}}
#: "served token" is kind "token" with an endpoint.
KINDS = ["template", "pair", "labels", "token", "served token", "route", "judge", "decision", "check", "all", "sum"]


def kind_of(name):
    """The kind that a spec names."""
    return name.rpartition(" ")[2]


def cross_encoder(folder, **more):
    """A random BERT that reads pairs of texts."""
    return paired(saved(folder, BertForSequenceClassification, BertConfig, num_labels=1, **more))


def verdict(yes):
    """What a model writes that says yes with a probability, with its log-probabilities."""
    told = [{"token": "No", "logprob": math.log(1 - yes)}, {"token": "Yes", "logprob": math.log(yes)}]
    content = [{"token": "Yes", "logprob": math.log(yes), "top_logprobs": told}]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Yes"},
        "finish_reason": "stop",
        "logprobs": {"content": content},
    }
    return {"id": "x", "object": "chat.completion", "model": "tiny", "choices": [choice]}


@contextlib.contextmanager
def declared(kind, folder, likes=None):
    """The keys of a spec of each kind; a chat model on a server likes what it is asked about, or an answer that is fine."""
    model = {"model": str(folder / "model")}
    if kind == "template":
        saved(folder / "model", LlamaForSequenceClassification, LlamaConfig, CHATML, num_labels=1)
        yield {**model, "has_zero": True}
    elif kind == "pair":
        cross_encoder(folder / "model")
        yield {**model, "zero": {"shift": 0.5}}
    elif kind == "labels":
        saved(folder / "model", BertForSequenceClassification, BertConfig, **LABELS)
        yield {**model, "labels": {"wanted": ["safe"], "inputs": "answer"}}
    elif kind == "token":
        saved(folder / "model", LlamaForCausalLM, LlamaConfig, CHATML)
        yield {**model, "token": {"wanted": [" good"], "unwanted": [" dull"]}}
    elif kind == "served token":
        with InThread(OpenAIServer()) as server:
            chance = (lambda said: 0.5 + 0.4 * likes(said)) if likes else (lambda said: 1 / (1 + len(said[-1]["content"])))
            server.answer = lambda body: verdict(chance(body["messages"]))
            yield {"endpoint": server.url, "model": "tiny", "token": {"wanted": ["Yes"], "unwanted": ["No"]}}
    elif kind == "route":
        with InThread(RewardServer(lambda pair: len(pair[1]) - 7.5)) as server:
            yield {"endpoint": server.url, "has_zero": True, "route": {"server": "vllm", "name": "rerank"}}
    elif kind == "judge":
        with InThread(OpenAIServer()) as server:
            fine = likes or (lambda said: 1 if "fine" in said["content"] else -1)
            server.text = lambda body, _: f"VERDICT: {'' if fine(body['messages'][1]) > 0 else 'UN'}ACCEPTABLE"
            yield {"endpoint": server.url, "model": "tiny", "judge": {"rubric": "It says so."}}
    elif kind == "decision":
        with InThread(DecisionServer(lambda text: {"good and very fine": 0.9, "fine cast": 0.7}.get(text, 0.2))) as server:
            yield {"endpoint": server.url, "model": "m", "decision": {"question": "Does the answer like the film?"}}
    elif kind == "check":
        yield {"check": REGEX["check"]}
    else:
        parts = [
            {**REGEX, "weight": 2.0 if kind == "sum" else 1.0},
            {"kind": "check", "check": {"type": "regex", "pattern": "awful", "absent": True}},
        ]
        yield {kind: parts, "has_zero": True}
