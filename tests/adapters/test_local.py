"""``TransformersGenerator`` on a tiny random Llama."""

from __future__ import annotations

import asyncio
import copy
import re
import threading

import pytest
import torch
from langchain_core.messages import HumanMessage
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare, kstest
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import TransformersGenerator
from bonmini_guard.adapters.attention import Bunch, Prompt, Prompts
from bonmini_guard.adapters.sampling import Sampler, signed, uniform
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import CheckpointError, ConfigurationError, GenerationError, InputError
from bonmini_guard.policy.policy import best_of_n
from bonmini_guard.testing import FakeRewardModel
from tests.reward.tiny import make_tokenizer

PROMPT = [HumanMessage("the film was very")]
#: Of seed 7 at step 3, so that answers of a seed do not change unnoticed.
NUMBER = 0.595391231526763


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def make(parts, **settings):
    return TransformersGenerator(*parts, **{"max_new_tokens": 12, **settings})


def requests(*seeds, **options):
    return [DrawRequest(PROMPT, seed, index, options) for index, seed in enumerate(seeds)]


async def group(generator, asked):
    return {position: message async for position, message in generator.draw_group(asked)}


async def test_a_draw_depends_on_its_seed_alone(parts):
    generator = make(parts, temperature=0.9, top_k=50, top_p=0.95)
    together = await group(generator, requests(1, 2, 3, 2))
    torch.manual_seed(99)
    alone = await generator.draw(requests(2)[0])
    assert alone.content == together[1].content == together[3].content
    assert len({message.content for message in together.values()}) == 3


async def test_the_decode_loop_answers_as_generate_does(parts):
    generator, plain = make(parts, max_new_tokens=24), make(parts, max_new_tokens=24)
    assert generator._decoder is not None
    plain._decoder = None
    ours, reads = await group(generator, requests(1, 2, 3, 4)), []
    with parts[0].model.embed_tokens.register_forward_pre_hook(lambda _, given: reads.append(given[0].shape)):
        theirs = await group(plain, requests(1, 2, 3, 4))
    assert {*reads[1:]} == {(4, 1)}, "generate, too, reads a prompt once for all of its draws"
    assert [ours[row].content for row in range(4)] == [theirs[row].content for row in range(4)]
    alone = await generator.draw(requests(3)[0])
    assert alone.content == ours[2].content


@pytest.mark.parametrize(
    "said",
    [
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"stop_strings": ["e"]},
        {"max_time": 1e-9},
        {"cache_implementation": "static"},
        {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
        {"min_new_tokens": 20, "suppress_tokens": list(range(5, 40))},
    ],
)
async def test_the_checkpoints_own_configuration_of_generate_changes_no_draw(parts, said):
    model = copy.deepcopy(parts[0])
    model.generation_config.update(**said)
    configured = copy.deepcopy(model.generation_config)
    plain, other = make(parts, max_new_tokens=24), make((model, parts[1]), max_new_tokens=24)
    other._decoder = None
    assert await group(other, requests(1, 2, 3)) == await group(plain, requests(1, 2, 3))
    assert model.generation_config == configured


async def test_a_fingerprint_says_that_a_penalty_of_the_checkpoint_is_set_aside_where_draws_followed_it_once(parts):
    model, never = copy.deepcopy(parts[0]), make(parts)
    model.generation_config.repetition_penalty = 1.05
    once, plain = make((model, parts[1])), make(parts)
    assert once.fingerprint() == plain.fingerprint()  # of the decode loop, which read none
    once._decoder = plain._decoder = None
    assert "repetition_penalty" in once.fingerprint()
    assert plain.fingerprint() == never.fingerprint()


async def test_a_model_that_keeps_nothing_of_a_prompt_draws(parts):
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=len(parts[1]), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    generator = make((OpenAIGPTLMHeadModel(config).eval(), parts[1]))
    drawn = await group(generator, requests(1, 2, 2))
    assert drawn[0].content != drawn[1].content == drawn[2].content == (await generator.draw(requests(2)[0])).content


async def test_a_model_whose_state_cannot_be_shared_reads_the_prompt_for_each_row(parts):
    torch.manual_seed(0)
    tokenizer = parts[1]
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, eos_token_id=tokenizer.eos_token_id)
    model = MambaForCausalLM(config).eval()
    generator = make((model, tokenizer))
    drawn = await group(generator, requests(1, 2, 2))
    assert drawn[0].content != drawn[1].content == drawn[2].content == (await generator.draw(requests(2)[0])).content
    ids = torch.tensor([generator.encode(PROMPT)])
    greedy = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    (likeliest,) = (await group(make((model, tokenizer), temperature=0), requests(1))).values()
    assert likeliest.content == tokenizer.decode(greedy, skip_special_tokens=True)


@pytest.mark.parametrize("size", [6, 700])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.8), (None, 0.999), (4, 0.8)])
def test_the_sampler_samples_the_softmax(top_k, top_p, size):
    logits = torch.linspace(2, -2, size)[torch.randperm(size, generator=torch.Generator().manual_seed(3))]
    chances, order = (logits / 0.7).softmax(0).sort(descending=True)
    if top_k:
        chances[top_k:] = 0
        chances /= chances.sum()
    if top_p:
        chances[(chances.cumsum(0) - chances) >= top_p] = 0
    kept = torch.zeros(size, dtype=torch.double).scatter_(0, order, chances.double())
    expected = 20_000 * kept / kept.sum()
    seeds = torch.arange(20_000)
    tokens = Sampler(0.7, top_k, top_p).choose(logits.expand(20_000, -1), seeds, seeds * 0 + 5)
    seen = torch.bincount(tokens, minlength=size)
    assert (seen[expected == 0] == 0).all()
    used = expected > 0
    assert chisquare(seen[used].numpy(), expected[used].numpy()).pvalue > 1e-3


def test_numbers_are_uniform_and_independent_over_seeds_and_steps():
    seeds, steps = torch.arange(-500, 500).unsqueeze(1), torch.arange(200).unsqueeze(0)
    numbers = uniform(seeds + 0 * steps, steps + 0 * seeds)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    for one, other in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        pairs = (one * 10).long() * 10 + (other * 10).long()
        assert chisquare(torch.bincount(pairs.flatten(), minlength=100).numpy()).pvalue > 1e-3
    # Of a seed beyond 64 bits the last ones count, and a number never changes.
    assert signed(2**64 + 7) == signed(7) == 7
    assert signed(2**63) == -(2**63)
    assert uniform(torch.tensor([7]), torch.tensor([3])).item() == pytest.approx(NUMBER, abs=1e-15)


async def test_company_does_not_change_the_last_digits(parts, monkeypatch):
    """Logits bit for bit: alone, in a group, beside other prompts of other lengths and ages, and with the prompt known before."""
    seen: dict[int, list[torch.Tensor]] = {}

    def choose(self, logits, seeds, steps):
        for row, seed in enumerate(seeds.tolist()):
            seen.setdefault(seed, []).append(logits[row].clone())
        return original(self, logits, seeds, steps)

    original = Sampler.choose
    monkeypatch.setattr(Sampler, "choose", choose)
    generator = make(parts, max_new_tokens=40)
    generator.tokenizer, ends = parts[1], generator._end_tokens
    monkeypatch.setattr(generator, "_end_tokens", lambda: ends() - ends())
    await generator.draw(requests(1005)[0])
    alone = seen.pop(1005)
    seen.clear()
    words = ["the film was very", "a long story about a man and his dog " * 4, "good", "the film was bad and the story was long"]
    others = [[DrawRequest([HumanMessage(text)], 100 * at + k, k) for k in range(20)] for at, text in enumerate(words)]

    async def later():
        await asyncio.sleep(0.02)
        return await group(generator, requests(1003, 1004, 1005, 1006))

    await asyncio.gather(*(group(generator, each) for each in others), later())
    assert len(seen[1005]) == len(alone) == 40
    assert all(torch.equal(one, other) for one, other in zip(alone, seen[1005], strict=True))


async def test_a_prompt_is_computed_once_for_all_of_its_draws_and_kept_within_bytes(parts, monkeypatch):
    computed = []
    step = Prompt.step
    monkeypatch.setattr(Prompt, "step", lambda self: computed.append(len(step(self)[0])) or step(self))
    generator = make(parts, max_new_tokens=5)
    await asyncio.gather(group(generator, requests(1, 2)), *(generator.draw(one) for one in requests(3, 4)))
    first = await generator.draw(requests(9)[0])
    longer = [DrawRequest([HumanMessage("the film was very long")], 1, 0)]
    await group(generator, longer)
    assert len(computed) == 2
    assert 0 < computed[1] < computed[0]
    generator._decoder._prompts._most = 1
    await group(generator, [DrawRequest([HumanMessage("something else")], 1, 0)])
    again = await generator.draw(requests(9)[0])
    assert len(computed) == 4
    assert computed[3] > 1
    assert again.content == first.content


async def test_more_rows_than_there_is_room_for_wait_and_answer_as_alone(parts):
    generator, narrow = make(parts), make(parts)
    narrow._decoder._most = 3
    wide = await group(generator, requests(*range(10)))
    few, _ = await asyncio.gather(group(narrow, requests(*range(10))), group(narrow, requests(20, 21)))
    assert [few[row].content for row in range(10)] == [wide[row].content for row in range(10)]


@pytest.mark.parametrize("broken", [(Bunch, "attend"), (Prompts, "get")], ids=["step", "room for a prompt"])
async def test_what_breaks_a_step_breaks_its_draws_and_no_later_ones(parts, monkeypatch, broken):
    generator = make(parts)
    expected = (await generator.draw(requests(1)[0])).content
    with monkeypatch.context() as patched:
        patched.setattr(*broken, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await generator.draw(requests(1)[0])
    assert (await generator.draw(requests(1)[0])).content == expected


async def test_stop_strings_cut_the_text_and_padding_is_not_counted(parts):
    generator = make(parts, max_new_tokens=40)
    free = await group(generator, requests(1, 2))
    stop = free[0].content[3:5]
    stopped = await group(generator, requests(1, 2, stop=[stop]))
    assert stopped[0].content == free[0].content[: free[0].content.index(stop)]
    assert stopped[0].response_metadata["finish_reason"] == "stop"
    assert stopped[0].usage_metadata["output_tokens"] < free[0].usage_metadata["output_tokens"]
    assert await group(generator, requests(1, 2, stop="")) == free


@pytest.mark.parametrize("decoder", [True, False])
async def test_an_answer_ends_at_the_tokenizers_end_too_where_the_checkpoint_names_another(parts, monkeypatch, decoder):
    monkeypatch.setattr(parts[0].generation_config, "eos_token_id", [2, parts[1].convert_tokens_to_ids("<|im_end|>")])
    generator = make(parts, max_new_tokens=40)
    if not decoder:
        generator._decoder = None
    drawn, as_message = [], generator._message
    monkeypatch.setattr(generator, "_message", lambda ids, answer, *more: drawn.append(answer) or as_message(ids, answer, *more))
    await generator.draw(requests(1)[0])
    mark, generator.tokenizer = generator.fingerprint(), copy.deepcopy(parts[1])
    generator.tokenizer.eos_token = parts[1].convert_ids_to_tokens(drawn[0][3])
    ended = await generator.draw(requests(1)[0])
    assert drawn[1] == drawn[0][: drawn[0].index(drawn[0][3]) + 1]
    assert ended.response_metadata["finish_reason"] == "stop"
    assert generator.fingerprint() != mark
    monkeypatch.setattr(parts[0].generation_config, "eos_token_id", None)  # as who wants answers of one length says
    assert (await generator.draw(requests(1)[0])).usage_metadata["output_tokens"] == 40


async def test_a_row_that_has_ended_is_computed_no_more(parts, monkeypatch):
    choose, computed = Sampler.choose, []
    monkeypatch.setattr(Sampler, "choose", lambda self, logits, *more: computed.append(len(logits)) or choose(self, logits, *more))
    generator = make(parts, max_new_tokens=40)
    stop = (await generator.draw(requests(1)[0])).content[3:5]
    computed.clear()
    drawn = await group(generator, requests(1, 2, 3, 4, stop=[stop]))
    lengths = [message.usage_metadata["output_tokens"] for message in drawn.values()]
    assert min(lengths) < max(lengths)
    assert sum(computed) == sum(lengths)


async def test_lone_surrogates_are_read_without_a_chat_template_too(parts):
    generator = make(parts)
    drawn = [
        await generator.draw(DrawRequest([HumanMessage(text)], 1, 0, {"stop": ["\ud800"]})) for text in ("a\ud800b", "a\ufffdb")
    ]
    assert drawn[0] == drawn[1]


async def test_a_temperature_too_cold_for_single_precision_takes_the_likeliest(parts):
    generator = make(parts)
    coldest, cold = [await generator.draw(requests(1, temperature=least)[0]) for least in (1e-40, 1e-6)]
    assert coldest.content == cold.content


async def test_the_temperature_is_1_where_nothing_is_said(parts):
    usual, said = TransformersGenerator(*parts, max_new_tokens=12), make(parts, temperature=1.0)
    assert (await usual.draw(requests(1)[0])).content == (await said.draw(requests(1)[0])).content
    assert usual.fingerprint() == said.fingerprint()


def test_a_stop_string_is_found_across_a_special_token_which_nobody_reads(parts):
    generator = make(parts)
    words = {word: parts[1](word, add_special_tokens=False)["input_ids"] for word in ("go", "od")}
    answer = [*words["go"], parts[1].bos_token_id, *words["od"]]
    assert generator._stopped(answer, ["good"])
    assert not generator._stopped(answer, ["<s>"])
    assert not generator._stopped(answer, [])


async def test_max_tokens_is_honoured_and_counted(parts):
    message = await make(parts).draw(requests(1, max_tokens=3)[0])
    assert message.usage_metadata["output_tokens"] <= 3
    with pytest.raises(InputError, match="exceeds"):
        await make(parts).draw(requests(1, max_tokens=600)[0])


async def test_a_cancelled_loop_stops_at_the_next_token(parts, monkeypatch):
    choose, some, cancelled, after = Sampler.choose, threading.Event(), threading.Event(), []

    def chosen(self, *given):
        after.append(cancelled.is_set())
        if len(after) == 3:  # in the midst of its tokens
            some.set()
            cancelled.wait(60)
        return choose(self, *given)

    monkeypatch.setattr(Sampler, "choose", chosen)
    generator = make(parts, max_new_tokens=490)
    task = asyncio.create_task(generator.draw(requests(1)[0]))
    await asyncio.to_thread(some.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    generator._thread.submit(lambda: None).result(timeout=60)
    assert sum(after) == 0


async def test_a_prompt_that_is_too_long_is_a_recorded_input_error(parts):
    generator = make(parts, max_new_tokens=500)
    with pytest.raises(GenerationError) as caught:
        await Engine(generator, FakeRewardModel({}), best_of_n(2)).run([HumanMessage("film " * 60)], seed=1)
    assert [type(cause) for cause in caught.value.__cause__.exceptions] == [InputError]


async def test_a_prompt_without_tokens_is_refused(parts, monkeypatch):
    monkeypatch.setattr("bonmini_guard.adapters.local.prompt_ids", lambda *_: [])  # of a base model that begins with no token
    with pytest.raises(InputError, match="no tokens"):
        await make(parts).draw(requests(1)[0])


async def test_a_context_without_an_end_is_said_as_minus_one(parts):
    config = XLNetConfig(vocab_size=len(parts[1]), d_model=16, n_layer=1, n_head=1, d_inner=16)
    assert make((XLNetLMHeadModel(config).eval(), parts[1])).encode([HumanMessage("film")])


async def test_the_context_of_a_model_of_texts_and_images_is_that_of_its_texts(parts):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    texts = {**size, "vocab_size": len(parts[1]), "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 16}
    config = Gemma3Config(text_config=texts, vision_config={**size, "image_size": 28, "patch_size": 14}, image_token_index=5)
    with pytest.raises(InputError, match="exceeds the model's context of 16"):
        await make((AutoModelForCausalLM.from_config(config).eval(), parts[1])).draw(requests(1)[0])


@pytest.mark.filterwarnings("ignore:uncalibrated")
def test_temperature_zero_with_several_draws_is_refused(parts):
    scorer = FakeRewardModel(lambda text: 1.0)
    with pytest.raises(ConfigurationError, match="temperature 0"):
        BestOfMiniN(generator=make(parts, temperature=0), reward_model=scorer)
    guard = BestOfMiniN(generator=make(parts, temperature=0), reward_model=scorer, mini_n=1, max_loops=1)
    assert guard.invoke("the film").content == guard.invoke("the film").content


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_range(parts, settings):
    with pytest.raises(ConfigurationError):
        make(parts, **settings)


def test_weights_that_are_single_numbers_are_in_the_fingerprint(parts):
    told = set()
    for scale in (1.0, 2.0):
        model = LlamaForCausalLM(parts[0].config).eval()
        model.load_state_dict(parts[0].state_dict())
        model.register_buffer("scale", torch.tensor(scale))
        told.add(make((model, parts[1])).fingerprint())
    assert len(told) == 2


def test_load_and_fingerprint(parts, tmp_path):
    parts[0].save_pretrained(tmp_path)
    parts[1].save_pretrained(tmp_path)
    loaded = TransformersGenerator.load(str(tmp_path), device="cpu", max_new_tokens=12)
    assert loaded.fingerprint() == make(parts).fingerprint() != make(parts, temperature=0.5).fingerprint()
    with pytest.raises(CheckpointError, match="nowhere"):
        TransformersGenerator.load("/nowhere/model")
    with pytest.raises(ConfigurationError, match="no device 'tpux' here"):
        TransformersGenerator.load(str(tmp_path), device="tpux")
    whole = load_file(tmp_path / "model.safetensors")
    whole.pop(name := next(name for name in whole if "q_proj" in name))
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"without weights for {re.escape(name)}"):
        TransformersGenerator.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("decoder", [True, False])
async def test_call_options_act_for_their_request_alone(parts, decoder):
    generator = make(parts, temperature=1.0)
    if not decoder:
        generator._decoder = None
    plain, cold, narrow = await asyncio.gather(
        *(group(generator, requests(1, 2, 3, **options)) for options in ({}, {"temperature": 0.001}, {"top_k": 1}))
    )
    assert len({message.content for message in plain.values()}) == 3
    # Both are the likeliest tokens, whatever the seed, and beside requests that sample.
    assert len({message.content for message in (*cold.values(), *narrow.values())}) == 1
    for name in ("max_tokens", "max_new_tokens", "max_completion_tokens"):
        assert (await generator.draw(requests(1, **{name: 3})[0])).usage_metadata["output_tokens"] <= 3


@pytest.mark.parametrize(
    "options", [{"nonsense": 1}, {"n": 2}, {"seed": 3}, {"temperature": 0}, {"top_p": 2}, {"response_format": {}}]
)
async def test_options_that_cannot_act_are_refused(parts, options):
    with pytest.raises(ConfigurationError, match=r"call option|temperature|top_p must be"):
        await make(parts).draw(requests(1, **options)[0])


async def test_tools_go_through_the_chat_template_or_are_refused(parts):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    generator = make(parts)
    template, plain = generator.tokenizer.chat_template, generator.encode(PROMPT)
    try:
        generator.tokenizer.chat_template = (
            "{{ messages[-1]['content'] }}{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}"
        )
        assert len(generator.encode(PROMPT, tools=[tool])) > len(generator.encode(PROMPT))
        generator.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
        with pytest.raises(ConfigurationError, match="the chat template knows none"):
            await generator.draw(requests(1, tools=[tool])[0])
    finally:
        generator.tokenizer.chat_template = template
    assert generator.encode(PROMPT) == plain
