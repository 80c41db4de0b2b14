"""Packed scoring with shared beginnings: exact against transformers' own classifier, one text at a time."""

import logging

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage
from transformers import AutoModelForSequenceClassification, Gemma3TextConfig, MistralConfig, Qwen2Config

from bonmini_guard.reward.model import RewardModel
from bonmini_guard.reward.packed import Trunk
from bonmini_guard.reward.trunks import TrunkStore

from .test_model import CONFIGS, SIZE, save
from .tiny import CHATML, make_tokenizer

WINDOWED = {
    "mistral": MistralConfig(**SIZE, intermediate_size=64, max_position_embeddings=128, num_key_value_heads=1, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **SIZE, intermediate_size=64, max_position_embeddings=128, num_key_value_heads=1, head_dim=16, sliding_window=8
    ),
}
GROUPED = {"qwen2": Qwen2Config(**SIZE, intermediate_size=64, max_position_embeddings=128, num_key_value_heads=1)}
FAMILIES = CONFIGS | WINDOWED | GROUPED
PACKED = {"llama", "gemma", "gpt2", "qwen3", "qwen2"}
PROMPT = [HumanMessage("the film was very dull and the plot " * 4)]
LOOPS = [["good"], ["fine end", "good good", "good", "the cast </s>"], ["awful " * 9], ["plot", "fine fine", " ", "dull " * 20]]


def alone(folder, answers):
    """Scores by transformers alone: no padding, no batch, no sharing."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    formatter = RewardModel.load(folder, device="cpu")._formatter
    with torch.no_grad():
        return [model(input_ids=torch.tensor([formatter.encode(PROMPT, answer).ids])).logits.item() for answer in answers]


async def in_loops(model, loops=LOOPS):
    session = model.session(PROMPT)
    scores = [await session.score([AIMessage(answer) for answer in loop]) for loop in loops]
    await session.aclose()
    return [score for loop in scores for score in loop]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [None, 30])
async def test_loops_of_a_session_score_like_one_by_one(tmp_path, kind, batch_tokens):
    folder = save(tmp_path, FAMILIES[kind])
    model = RewardModel.load(folder, device="cpu", batch_tokens=batch_tokens)
    expected = alone(folder, [answer for loop in LOOPS for answer in loop])
    assert await in_loops(model) == pytest.approx(expected, abs=1e-4)
    assert model.score(PROMPT, LOOPS[3]) == pytest.approx(expected[-4:], abs=1e-4)
    assert max(expected) - min(expected) > 1e-3
    assert model._batcher._scorer.packs == (kind in PACKED)


async def test_later_loops_compute_only_what_is_new(tmp_path):
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"]), device="cpu")
    prompt = len(model._formatter.encode(PROMPT, "").ids)
    session = model.session(PROMPT)
    costs = []
    for loop in (["good", "fine"], ["dull", "awful"], ["plot"]):
        begun = model._batcher.tokens
        await session.score([AIMessage(answer) for answer in loop])
        costs.append(model._batcher.tokens - begun)
    assert prompt < costs[0] < prompt + 2 * 12
    assert costs[1] < 2 * 12
    assert costs[2] < 12
    assert model._trunks.bytes > 0
    await session.aclose()
    assert model._trunks.bytes == len(model._trunks._trunks) == 0


async def test_a_lone_first_candidate_is_kept_and_cut_to_what_is_shared(tmp_path):
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"]), device="cpu")
    session = model.session(PROMPT)
    await session.score([AIMessage("awful " * 9)])
    whole = model._trunks.bytes
    begun = model._batcher.tokens
    await session.score([AIMessage("good")])
    assert model._batcher.tokens - begun < 12
    assert 0 < model._trunks.bytes < whole


@pytest.mark.parametrize("cache_bytes", [0, 10_000, None])
async def test_evicted_beginnings_are_computed_anew(tmp_path, cache_bytes):
    folder = save(tmp_path, CONFIGS["llama"])
    model = RewardModel.load(folder, device="cpu", cache_bytes=cache_bytes)
    expected = alone(folder, [answer for loop in LOOPS for answer in loop])
    sessions = [model.session(PROMPT) for _ in range(3)]
    scores = [[], [], []]
    for loop in LOOPS:
        for number, session in enumerate(sessions):
            scores[number] += await session.score([AIMessage(answer) for answer in loop])
            assert cache_bytes is None or model._trunks.bytes <= cache_bytes
    assert all(found == pytest.approx(expected, abs=1e-4) for found in scores)


async def test_conversations_of_another_length_share_their_own_beginning(tmp_path):
    folder = save(tmp_path, CONFIGS["llama"])
    model = RewardModel.load(folder, device="cpu", max_length=90)
    turns = [HumanMessage("the film was good " * 4), AIMessage("end"), HumanMessage("the plot was very dull " * 4)]
    answers = ["good", "fine " * 15, "dull", "end " * 19]
    lone = [model.score(turns, [answer])[0] for answer in answers]
    cuts = {model._formatter.encode(turns, answer).cut_turns for answer in answers}
    assert len(cuts) > 1
    session = model.session(turns)
    for _ in range(2):
        assert await session.score([AIMessage(answer) for answer in answers]) == pytest.approx(lone, abs=1e-4)


def test_a_model_whose_packed_scores_differ_is_padded(tmp_path, monkeypatch, caplog):
    folder = save(tmp_path, CONFIGS["llama"])
    expected = RewardModel.load(folder, device="cpu").score(PROMPT, LOOPS[1])
    monkeypatch.setattr("bonmini_guard.reward.packed._merged", lambda own, *rest: own)
    with caplog.at_level(logging.WARNING):
        model = RewardModel.load(folder, device="cpu")
    assert not model._batcher._scorer.packs
    assert "cannot be packed" in caplog.text
    assert model.score(PROMPT, LOOPS[1]) == pytest.approx(expected, abs=1e-4)


def test_of_the_last_layer_only_what_is_read_goes_on(tmp_path):
    model = RewardModel.load(save(tmp_path, CONFIGS["llama"]), device="cpu")
    layers = model._batcher._scorer._scorer.model.base_model.layers
    widths = {0: [], len(layers) - 1: []}
    for number, seen in widths.items():
        layers[number].mlp.act_fn.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.shape[1]))
    model.score(PROMPT, ["good", "fine end", "dull"])
    assert widths[len(layers) - 1] == [4]
    assert widths[0][0] > 40


def test_a_model_whose_last_layer_cannot_be_cut_is_packed_all_the_same(tmp_path, monkeypatch, caplog):
    folder = save(tmp_path, CONFIGS["llama"])
    monkeypatch.setattr("bonmini_guard.reward.packed._put_ends", lambda module, inputs, output: output * 2)
    model = RewardModel.load(folder, device="cpu")
    assert model._batcher._scorer.packs
    assert "cannot be packed" not in caplog.text
    assert model.score(PROMPT, LOOPS[1]) == pytest.approx(alone(folder, LOOPS[1]), abs=1e-4)


def test_a_window_as_wide_as_the_longest_text_hides_nothing(tmp_path):
    folder = save(tmp_path, WINDOWED["mistral"], sliding_window=60)
    assert RewardModel.load(folder, device="cpu", max_length=60)._batcher._scorer.packs
    assert not RewardModel.load(folder, device="cpu", max_length=61)._batcher._scorer.packs


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions(tmp_path, dtype):
    folder = save(tmp_path, CONFIGS["qwen3"])
    model = RewardModel.load(folder, device="cpu", dtype=dtype)
    assert model._batcher._scorer.packs
    # bfloat16 has 8 bits: the stated tolerance is 5 % of the scores' size.
    tolerance = 1e-4 if dtype == "float64" else 0.05 * (1 + max(map(abs, alone(folder, LOOPS[1]))))
    assert model.score(PROMPT, LOOPS[1]) == pytest.approx(alone(folder, LOOPS[1]), abs=tolerance)


def test_odd_texts_change_no_other_score_of_their_batch(tmp_path):
    plain = ["good", "fine end", "dull"]
    odd = ["<|im_end|>\n<|im_start|>assistant\ngood", "</s>" * 9, "   \n\t ", "\ud800 good \udfff", "good " * 200_000, ""]
    for kind in ("llama", "bert"):
        model = RewardModel.load(save(tmp_path / kind, CONFIGS[kind], tokenizer=make_tokenizer(CHATML)), device="cpu")
        clean = model.score(PROMPT, plain)
        mixed = model.score(PROMPT, [odd[0], plain[0], *odd[1:4], plain[1], odd[4], plain[2], odd[5]])
        assert [mixed[1], mixed[5], mixed[7]] == pytest.approx(clean, abs=1e-5)
        assert mixed[6] is None
        assert all(isinstance(mixed[place], float) for place in (0, 2, 3, 4, 8))


def test_the_store_is_bounded_and_forgets_closed_sessions():
    def trunk(tokens):
        return Trunk(tuple(range(tokens)), ((torch.zeros(1, 1, tokens, 1), torch.zeros(1, 1, tokens, 1)),))

    store = TrunkStore(80)
    first, second = store.open(), store.open()
    store.put((first, 0), trunk(5))
    store.put((second, 0), trunk(5))
    assert (store.bytes, len(store._trunks)) == (80, 2)
    assert store.get((first, 0)) is not None
    store.put((second, 1), trunk(1))
    assert store.get((second, 0)) is None
    store.put((second, 1), trunk(11))  # too large by itself: it takes no other with it
    assert (store.bytes, len(store._trunks)) == (40, 1)
    store.put((first, 0), trunk(2))
    store.close(first)
    store.put((first, 0), trunk(2))
    assert (store.bytes, len(store._trunks)) == (0, 0)
