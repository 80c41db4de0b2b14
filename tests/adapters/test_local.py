"""``TransformersGenerator`` on a tiny random Llama."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
import torch
from langchain_core.messages import HumanMessage
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import TransformersGenerator
from bonmini_guard.adapters.sampling import Sampler
from bonmini_guard.engine.engine import Engine
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.errors import CheckpointError, ConfigurationError, GenerationError, InputError
from bonmini_guard.policy.policy import best_of_n
from bonmini_guard.testing import FakeRewardModel
from tests.reward.tiny import make_tokenizer

PROMPT = [HumanMessage("the film was very")]


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
    ours, theirs = await group(generator, requests(1, 2, 3, 4)), await group(plain, requests(1, 2, 3, 4))
    assert [ours[row].content for row in range(4)] == [theirs[row].content for row in range(4)]
    alone = await generator.draw(requests(3)[0])
    assert alone.content == ours[2].content


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.8)])
def test_the_sampler_samples_the_softmax(top_k, top_p):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    chances = (logits / 0.7).softmax(0)
    kept = chances.clone()
    if top_k:
        kept[top_k:] = 0
    if top_p:
        kept[(chances.cumsum(0) - chances) >= top_p] = 0
    expected = 20_000 * kept / kept.sum()
    tokens = Sampler(0.7, top_k, top_p).choose(logits.expand(20_000, -1), [Random(1)] * 20_000)
    seen = torch.bincount(tokens, minlength=6)
    assert (seen[expected == 0] == 0).all()
    used = expected > 0
    wanted = expected[used].double()
    assert chisquare(seen[used].numpy(), (wanted * (20_000 / wanted.sum())).numpy()).pvalue > 1e-3


async def test_stop_strings_cut_the_text_and_padding_is_not_counted(parts):
    generator = make(parts, max_new_tokens=40)
    free = await group(generator, requests(1, 2))
    stop = free[0].content[3:5]
    stopped = await group(generator, requests(1, 2, stop=[stop]))
    assert stopped[0].content == free[0].content[: free[0].content.index(stop)]
    assert stopped[0].response_metadata["finish_reason"] == "stop"
    assert stopped[0].usage_metadata["output_tokens"] < free[0].usage_metadata["output_tokens"]


async def test_max_tokens_is_honoured_and_counted(parts):
    message = await make(parts).draw(requests(1, max_tokens=3)[0])
    assert message.usage_metadata["output_tokens"] <= 3
    with pytest.raises(InputError, match="exceeds"):
        await make(parts).draw(requests(1, max_tokens=600)[0])


async def test_a_cancelled_loop_stops_at_the_next_token(parts):
    generator = make(parts, max_new_tokens=490)
    task = asyncio.create_task(generator.draw(requests(1)[0]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    begun = time.perf_counter()
    generator._thread.submit(lambda: None).result(timeout=60)
    stopped_after = time.perf_counter() - begun
    begun = time.perf_counter()
    await make(parts, max_new_tokens=490).draw(requests(1)[0])
    assert stopped_after < (time.perf_counter() - begun) / 2


async def test_a_prompt_that_is_too_long_is_a_recorded_input_error(parts):
    generator = make(parts, max_new_tokens=500)
    with pytest.raises(GenerationError) as caught:
        await Engine(generator, FakeRewardModel({}), best_of_n(2)).run([HumanMessage("film " * 60)], seed=1)
    assert [type(cause) for cause in caught.value.__cause__.exceptions] == [InputError]


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


def test_load_and_fingerprint(parts, tmp_path):
    parts[0].save_pretrained(tmp_path)
    parts[1].save_pretrained(tmp_path)
    loaded = TransformersGenerator.load(str(tmp_path), device="cpu", max_new_tokens=12)
    assert loaded.fingerprint() == make(parts).fingerprint() != make(parts, temperature=0.5).fingerprint()
    with pytest.raises(CheckpointError, match="nowhere"):
        TransformersGenerator.load("/nowhere/model")


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
    with pytest.raises(ConfigurationError, match=r"call option|temperature"):
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
