"""The formulas of docs/scaling.md against what is counted: operations, tokens, bytes of kept prompts."""

import random

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scoring.models import SHAPES, flops_per_token, save_model, useful_flops, words
from bonmini_guard import RewardModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder, "tiny", "cpu")
    model = RewardModel.load(folder, device="cpu")
    yield model
    model.close()


def test_operations_of_the_linear_layers(model):
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model._batcher._scorer._scorer.model.base_model(input_ids=torch.ones(1, 64, dtype=torch.long))
    counted = sum(
        counter.get_flop_counts()["Global"][kind]
        for kind in (torch.ops.aten.mm, torch.ops.aten.addmm)
        if kind in counter.get_flop_counts()["Global"]
    )
    assert counted == pytest.approx(64 * flops_per_token("tiny"), rel=1e-6)


async def test_tokens_and_bytes_of_a_session(model):
    source = torch.Generator().manual_seed(0)
    prompt, loops = words(100, source), [[words(20, source) for _ in range(4)] for _ in range(3)]
    session = model.session([HumanMessage(prompt)])
    begun = model.activity.tokens
    for loop in loops:
        await session.score([AIMessage(answer) for answer in loop])
    assert model.activity.tokens - begun == 100 + 3 * 4 * 20
    config = SHAPES["tiny"]  # keys and values of each layer, four bytes a number
    assert model.activity.cache_bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 100 * 4
    await session.aclose()


def test_useful_operations_count_a_prompt_once():
    alone, shared = useful_flops("tiny", 0, [576] * 8), useful_flops("tiny", 512, [64] * 8)
    assert 4 < alone / shared < 5.5


@pytest.mark.parametrize("busy", [0.5, 0.7, 0.9])
def test_the_wait_before_a_busy_scorer(busy):
    """Lindley's recursion with equal service times against the formula, and the stated 99th percentile."""
    source, wait, waits = random.Random(0), 0.0, []
    for _ in range(200_000):
        wait = max(0.0, wait + 1 - source.expovariate(busy))
        waits.append(wait)
    mean = sum(waits) / len(waits)
    assert mean == pytest.approx(busy / (2 * (1 - busy)), rel=0.1)
    assert 4.5 < sorted(waits)[int(0.99 * len(waits))] / mean < 7
