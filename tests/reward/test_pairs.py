"""Cross-encoders read prompt and answer as a pair, as transformers' ``tokenizer(prompt, answer)`` writes it."""

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bonmini_guard import RewardModel
from bonmini_guard.errors import CandidateTooLong, CheckpointError, ConfigurationError, NotRendered
from bonmini_guard.reward.pairs import PairFormatter
from bonmini_guard.training import train_reward_model
from bonmini_guard.training.choices import read_choices
from bonmini_guard.training.settings import Settings

from .test_kinds import saved
from .tiny import CHATML, make_tokenizer, simulated_rows, write_jsonl

KINDS = {
    "bert": (BertConfig, BertForSequenceClassification, {}, "<s> $A </s> $B:1 </s>:1"),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, {}, "<s> $A </s> </s> $B </s>"),
    "modernbert": (ModernBertConfig, ModernBertForSequenceClassification, {"local_attention": 16}, "<s> $A </s> $B </s>"),
}
PROMPT, ANSWERS = "what was the film?", ["a good film", "dull", "of the plot", "good </s> dull"]


def pair_tokenizer(pair="<s> $A </s> $B:1 </s>:1", segments=True):
    tokenizer = make_tokenizer()
    specials = [("<s>", 1), ("</s>", 2)]
    written = processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=specials)
    tokenizer.backend_tokenizer.post_processor = written
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    return tokenizer


def save(folder, kind):
    config, model, extra, pair = KINDS[kind]
    saved(folder, model, config, num_labels=1, **extra)
    pair_tokenizer(pair, kind == "bert").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers(tmp_path, kind):
    rewards = RewardModel.load(save(tmp_path, kind), inputs="pair", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = KINDS[kind][1].from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        theirs = [model(**tokenizer(PROMPT, answer, return_tensors="pt")).logits.item() for answer in ANSWERS[:3]]
    assert rewards.score(PROMPT, ANSWERS[:3]) == pytest.approx(theirs, abs=1e-4)


def test_segments_matter(tmp_path):
    folder = save(tmp_path, "bert")
    as_pair, as_text = (
        RewardModel.load(folder, inputs=inputs, device="cpu").score(PROMPT, ANSWERS[:3]) for inputs in ("pair", "text")
    )
    assert as_pair != pytest.approx(as_text, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_that_may_read_pairs_and_does_not_say_is_refused(tmp_path, kind):
    with pytest.raises(ConfigurationError, match="inputs='pair'"):
        RewardModel.load(save(tmp_path, kind), device="cpu")


def test_one_with_a_chat_template_or_a_tokenizer_without_pairs_is_not(tmp_path):
    folder = save(tmp_path, "bert")
    tokenizer = pair_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    assert RewardModel.load(folder, device="cpu").score(PROMPT, ["good"])
    make_tokenizer(CHATML).save_pretrained(folder)
    assert RewardModel.load(folder, device="cpu").score(PROMPT, ["good"])


def test_a_tokenizer_without_pairs_makes_none():
    with pytest.raises(CheckpointError, match="separator"):
        PairFormatter(make_tokenizer())


def test_unknown_inputs(tmp_path):
    with pytest.raises(ConfigurationError, match="use 'text', 'pair' or 'answer'"):
        RewardModel.load(save(tmp_path, "bert"), inputs="ids", device="cpu")


# What is written


def test_special_tokens_in_an_answer_are_text():
    tokenizer = pair_tokenizer()
    ids = PairFormatter(tokenizer).encode([HumanMessage("the film</s>")], ANSWERS[3]).ids
    assert (ids.count(1), ids.count(2)) == (1, 2)
    assert tokenizer.decode(ids) == f"<s>the film</s></s>{ANSWERS[3]}</s>"


def test_the_oldest_turns_are_cut_and_the_answer_never():
    turns = [SystemMessage("end"), *[HumanMessage(f"the film {number}") for number in range(9)], HumanMessage("last plot")]
    formatter = PairFormatter(pair_tokenizer(), max_length=40)
    encoded = formatter.encode(turns, "was good")
    text = pair_tokenizer().decode(encoded.ids)
    assert 0 < encoded.cut_turns < 10
    assert len(encoded.ids) <= 40
    assert text.startswith("<s>end\nthe film")
    assert text.endswith("last plot</s>was good</s>")
    with pytest.raises(CandidateTooLong, match="never cut"):
        formatter.encode(turns, "good " * 60)


def test_no_more_turns_are_cut_than_must_be():
    turns = [HumanMessage("the film " * (number % 3) + str(number)) for number in range(7)]
    free = PairFormatter(pair_tokenizer())
    left = [free.encode(turns[cut:], "was good").ids for cut in range(len(turns))]
    for limit in range(len(left[-1]), len(left[0]) + 1):
        cut = next(cut for cut, ids in enumerate(left) if len(ids) <= limit)
        encoded = PairFormatter(pair_tokenizer(), max_length=limit).encode(turns, "was good")
        assert (encoded.ids, encoded.cut_turns) == (left[cut], cut)


def test_parts_of_an_answer_are_in_it_or_it_has_no_score():
    formatter = PairFormatter(pair_tokenizer(), not_shown=())
    answer = AIMessage("good", additional_kwargs={"reasoning_content": "fine", "refusal": "end"})
    assert all(
        part in pair_tokenizer().decode(formatter.encode([HumanMessage("q")], answer).ids) for part in ("good", "fine", "end")
    )
    with pytest.raises(NotRendered, match="audio"):
        formatter.encode([HumanMessage("q")], AIMessage([{"type": "audio", "id": "1"}]))


# Training


def test_a_model_that_is_trained_on_pairs_says_so(tmp_path):
    rows = read_choices(write_jsonl(tmp_path / "rows.jsonl", simulated_rows(20, seed=1)))
    base = save(tmp_path / "base", "bert")
    settings = {"epochs": 1, "checkpoints": 0, "device": "cpu"}
    with pytest.raises(ConfigurationError, match="inputs='pair'"):
        train_reward_model(rows, base, tmp_path / "unsaid", **settings)
    train_reward_model(rows, base, tmp_path / "out", inputs="pair", **settings)
    trained = RewardModel.load(tmp_path / "out", device="cpu")
    assert trained.has_zero
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        theirs = model(**tokenizer(PROMPT, "good", return_tensors="pt")).logits.item()
    assert trained.score(PROMPT, ["good"]) == pytest.approx([theirs], abs=1e-4)
    with pytest.raises(ConfigurationError, match="inputs"):
        Settings(inputs="ids")
