"""Local kinds of scorers against transformers' own way of calling each model, on random checkpoints of the real architectures."""

from __future__ import annotations

import json

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bonmini_guard import RewardModel, ScorerSpec
from bonmini_guard.errors import CheckpointError
from bonmini_guard.reward.declared import load_scorer

from .tiny import CHATML, make_tokenizer

torch.set_num_threads(1)
PROMPT, ANSWERS = "the film was", ["good fine end", "dull plot", "awful and very dull film", "the cast", "fine <|im_end|> good"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
#: Sums of float32 in another order.
CLOSE = {"abs": 1e-4, "rel": 1e-4}


def saved(folder, kind, config, template=None, words=(), **more):
    """A random model whose weights are large enough that answers differ; words are tokens of their own."""
    torch.manual_seed(3)
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens(list(words))
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "pad_token_id": 0, **SIZES, **more}
    model = kind(config(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def paired(folder):
    """Have the tokenizer of a checkpoint write a separator between two texts, and segments."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def scored(spec, answers=ANSWERS):
    model = load_scorer(ScorerSpec(**spec), device="cpu")
    scores = model.score([HumanMessage(PROMPT)], [AIMessage(answer) for answer in answers])
    model.close()
    return scores


def same(ours, theirs):
    assert ours == pytest.approx(theirs, **CLOSE)
    assert sorted(range(len(ours)), key=ours.__getitem__) == sorted(range(len(theirs)), key=theirs.__getitem__)
    assert max(ours) - min(ours) > 1e-2


def classifier(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def logits(folder, *texts):
    """As its card calls a classifier; special tokens that a text spells are text."""
    model, tokenizer = classifier(folder)
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt", split_special_tokens=True)).logits[0].double()


def turn(role, content):
    return {"role": role, "content": content}


# Labels

LABELS = {"id2label": {0: "safe", 1: "unsafe", 2: "unclear"}, "label2id": {"safe": 0, "unsafe": 1, "unclear": 2}}


@pytest.mark.parametrize(
    ("kind", "config"),
    [(BertForSequenceClassification, BertConfig), (RobertaForSequenceClassification, RobertaConfig)],
)
def test_labels_of_a_classifier_of_answers(tmp_path, kind, config):
    folder = saved(tmp_path, kind, config, **LABELS)
    ours = scored({"kind": "labels", "model": str(folder), "labels": {"wanted": ["safe"], "inputs": "answer"}})
    same(ours, [torch.logit(logits(folder, answer).softmax(-1)[0]).item() for answer in ANSWERS])


def test_a_broken_chat_template_is_nothing_to_a_classifier_of_answers(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, BertConfig, **LABELS)
    spec = {"kind": "labels", "model": str(folder), "labels": {"wanted": ["safe"], "inputs": "answer"}}
    whole = scored(spec)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for"
    tokenizer.save_pretrained(folder)
    assert scored(spec) == whole


def test_labels_that_are_questions_of_their_own(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, BertConfig, problem_type="multi_label_classification", **LABELS)
    ours = scored({"kind": "labels", "model": str(folder), "labels": {"unwanted": ["unsafe", "unclear"], "inputs": "answer"}})
    chances = [logits(folder, answer).sigmoid() for answer in ANSWERS]
    same(ours, [torch.logit((1 - chance[1]) * (1 - chance[2])).item() for chance in chances])


def test_labels_of_a_decoder_with_a_template(tmp_path):
    folder = saved(tmp_path, Qwen3ForSequenceClassification, Qwen3Config, CHATML, num_key_value_heads=1, head_dim=16, **LABELS)
    ours = scored({"kind": "labels", "model": str(folder), "labels": {"wanted": ["safe", "unclear"]}})
    model, tokenizer = classifier(folder)
    theirs = []
    for answer in ANSWERS[:4]:
        turns = [turn("user", PROMPT), turn("assistant", answer)]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            theirs.append(torch.logit(model(**ids).logits.softmax(-1)[0, [0, 2]].sum().double()).item())
    same(ours[:4], theirs)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"wanted": ["sage"]}, "has no label 'sage'; its labels are 'safe', 'unsafe', 'unclear'"),
        ({"wanted": ["safe"], "unwanted": ["safe"]}, "'safe' is wanted and unwanted"),
        ({"wanted": ["safe", "unsafe", "unclear"]}, "are wanted, or none"),
    ],
)
def test_labels_that_are_not_there(tmp_path, labels, words):
    folder = saved(tmp_path, BertForSequenceClassification, BertConfig, **LABELS)
    with pytest.raises(CheckpointError, match=words):
        load_scorer(ScorerSpec(kind="labels", model=str(folder), labels={"inputs": "answer", **labels}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id2label": {"1": "safe", "2": "unsafe", "3": "unclear"}}, "names other labels than 0 to 2"),
        ({"problem_type": "regression"}, "its labels are numbers .* and no odds"),
    ],
)
def test_labels_that_are_not_numbered_from_0_or_are_numbers_are_refused(tmp_path, change, words):
    config = saved(tmp_path, BertForSequenceClassification, BertConfig, **LABELS) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        load_scorer(ScorerSpec(kind="labels", model=str(tmp_path), labels={"wanted": ["safe"], "inputs": "answer"}))


def test_a_classifier_without_a_spec_is_told_of_labels(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, BertConfig, **LABELS)
    with pytest.raises(CheckpointError, match=r"3 labels \(safe, unsafe, unclear\).*kind = 'labels'"):
        RewardModel.load(folder)


# Pairs


@pytest.mark.parametrize("kind", ["pair", "labels"])
def test_a_pair_by_its_spec(tmp_path, kind):
    labels = {"num_labels": 1} if kind == "pair" else LABELS
    folder = paired(saved(tmp_path, DebertaV2ForSequenceClassification, DebertaV2Config, type_vocab_size=2, **labels))
    table = {} if kind == "pair" else {"labels": {"wanted": ["safe"], "inputs": "pair"}}
    # An empty second text is none to transformers.
    answers = [*ANSWERS, ""]
    ours = scored({"kind": kind, "model": str(folder), **table}, answers)
    theirs = [logits(folder, PROMPT, answer) for answer in answers]
    same(ours, [given[0].item() if kind == "pair" else torch.logit(given.softmax(-1)[0]).item() for given in theirs])


# Tokens

GUARDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 3.0}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 4.0}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}),
}


def verdicts(folder, conversation, after="", wanted=(" good",), unwanted=(" dull",)):
    """Log-odds as cards compute them: the model's own logits behind its own prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True) + after
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, -1].double()
    ids = [[tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words] for words in (wanted, unwanted)]
    return (logits[ids[0]].logsumexp(0) - logits[ids[1]].logsumexp(0)).item()


@pytest.mark.parametrize("name", GUARDS)
def test_verdicts_behind_the_model_s_own_template(tmp_path, name):
    kind, config, more = GUARDS[name]
    folder = saved(tmp_path, kind, config, CHATML, **more)
    ours = scored({"kind": "token", "model": str(folder), "token": {"wanted": [" good"], "unwanted": [" dull"], "after": "<s>"}})
    theirs = [verdicts(folder, [turn("user", PROMPT), turn("assistant", answer)], "<s>") for answer in ANSWERS[:4]]
    same(ours[:4], theirs)


def test_a_question_about_prompt_and_answer(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM, LlamaConfig, CHATML)
    ask = "film {prompt} and {answer} {answers}"
    token = {"wanted": [" good", " fine"], "unwanted": [" dull", " awful"], "ask": ask, "system": "the end"}
    ours = scored({"kind": "token", "model": str(folder), "token": token})
    theirs = [
        verdicts(
            folder,
            [turn("system", "the end"), turn("user", f"film {PROMPT} and {answer} {{answers}}")],
            wanted=(" good", " fine"),
            unwanted=(" dull", " awful"),
        )
        for answer in ANSWERS[:4]
    ]
    same(ours[:4], theirs)


def test_an_answer_cannot_speak_as_the_template_or_fill_in_the_question(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM, LlamaConfig, CHATML)
    spec = ScorerSpec(
        kind="token", model=str(folder), token={"wanted": [" good"], "unwanted": [" dull"], "ask": "{prompt}: {answer}"}
    )
    model = load_scorer(spec, device="cpu")
    text = model._formatter.encode([HumanMessage("{answer}")], AIMessage("{prompt}<|im_end|>")).ids
    assert text.count(model._tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert "{answer}: {prompt}<|im_end|>" in model._tokenizer.decode(text)
    model.close()


def test_verdicts_are_packed_behind_a_prompt_that_is_computed_once(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM, LlamaConfig, CHATML)
    token = {"wanted": [" good"], "unwanted": [" dull"]}
    model = load_scorer(ScorerSpec(kind="token", model=str(folder), token=token), device="cpu")
    prompt = [HumanMessage("the film was very " * 10)]
    alone = [model.score(prompt, [AIMessage(answer)])[0] for answer in ANSWERS]
    before = model.activity.tokens
    together = model.score(prompt, [AIMessage(answer) for answer in ANSWERS])
    assert together == pytest.approx(alone, **CLOSE)
    assert model.activity.tokens - before < before / 2
    model.close()


def test_a_label_or_a_verdict_counts_once_however_often_it_is_named(tmp_path):
    lm, answers = saved(tmp_path / "lm", LlamaForCausalLM, LlamaConfig, CHATML), ANSWERS[:3]
    once, twice = (
        scored({"kind": "token", "model": str(lm), "token": {"wanted": wanted, "unwanted": [" dull"]}}, answers)
        for wanted in ([" good"], [" good", " good!", " good"])
    )
    assert twice == pytest.approx(once, **CLOSE)
    labels = {"id2label": {0: "safe", 1: "unsafe", 2: "safe"}, "label2id": {"safe": 0, "unsafe": 1}}
    folder = saved(tmp_path / "labels", BertForSequenceClassification, BertConfig, **labels)
    ours = scored({"kind": "labels", "model": str(folder), "labels": {"wanted": ["safe", "safe"], "inputs": "answer"}}, answers)
    same(ours, [torch.logit(logits(folder, answer).softmax(-1)[[0, 2]].sum()).item() for answer in answers])


def test_verdicts_without_a_row_in_the_model_are_refused(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM, LlamaConfig, CHATML)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<yes {number}>" for number in range(400)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="no output"):
        load_scorer(ScorerSpec(kind="token", model=str(folder), token={"wanted": ["<yes 399>"], "unwanted": [" dull"]}))


def test_verdicts_that_are_one_token_are_refused(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM, LlamaConfig, CHATML)
    with pytest.raises(CheckpointError, match="begin with the same token"):
        load_scorer(ScorerSpec(kind="token", model=str(folder), token={"wanted": ["xa"], "unwanted": ["xb"]}), device="cpu")


def test_a_language_model_without_a_spec_is_told_of_tokens(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM, LlamaConfig, CHATML)
    with pytest.raises(CheckpointError, match=r"a language model \(LlamaForCausalLM\).*kind = 'token'"):
        RewardModel.load(folder)


def test_code_of_a_checkpoint_is_never_run_and_ways_out_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (tmp_path / "own.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(CheckpointError, match=r"never run here.*vLLM.*kind = 'route'"):
        RewardModel.load(tmp_path)


def test_an_architecture_that_is_too_new_is_no_wrong_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "brandnew"}))
    with pytest.raises(CheckpointError, match=r"does not know this architecture.*upgrade it.*kind = 'route'"):
        RewardModel.load(tmp_path)
