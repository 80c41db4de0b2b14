"""vLLM on the CPU: generation with ``n`` and seeds, and as a reward server. ``make live-vllm``."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from benchmarks.imdb.models import model_path
from benchmarks.wall_time import served
from bonmini_guard import RewardModel
from bonmini_guard.adapters import OpenAICompatibleGenerator, RemoteRewardModel
from bonmini_guard.adapters.http_errors import RequestRejected
from bonmini_guard.reward.declared import load_scorer
from tests.live.checks import PROMPT, asked, check_draws, check_guard, check_pass_rate, desk_guard, loop_of, request
from tests.live.servers import free_port, language_model, python, running
from tests.pages import run_page
from tests.reward.every_kind import cross_encoder

pytestmark = pytest.mark.live

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
COMMON = ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
#: On a CPU the engine dies of a seeded request whose prompt it computes in parts: "CPU Generator does not use offset".
COMMON += ["--no-enable-chunked-prefill"]
ANSWERS = [" wonderful and moving.", " a boring waste of time.", " ok I guess, not more", "", " great" * 60]


def serve(folder, model, *more):
    python()
    port = free_port()
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port), *COMMON, *more]
    return running(arguments, port, "/health", folder / "vllm.log", ENVIRONMENT)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    with serve(folder, language_model(folder / "lm"), "--served-model-name", "tiny") as base_url:
        yield base_url


@pytest.fixture(scope="module")
def reward_url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm-reward")
    with serve(folder, model_path("reward"), "--served-model-name", "rm", "--runner", "pooling") as base_url:
        yield base_url


@pytest.mark.parametrize("choices", ["separate", "server"])
@pytest.mark.parametrize("mode", ["chat", "completion"])
async def test_draws(url, choices, mode):
    await check_draws(url, choices=choices, mode=mode)


@pytest.mark.parametrize("stream", [False, True])
async def test_n_is_honoured_repeats_and_is_billed_once(url, stream):
    async with OpenAICompatibleGenerator(url, choices="server", max_tokens=12, stream=stream, logprobs=not stream) as generator:
        first, again = await loop_of(generator, [5, 6, 7, 8]), await loop_of(generator, [5, 6, 7, 8])
        assert [answer.text for answer in first] == [answer.text for answer in again]
        assert len({answer.text for answer in first}) == 4
        assert [answer.usage_metadata["input_tokens"] > 0 for answer in first] == [True, False, False, False]
        assert sum(answer.usage_metadata["output_tokens"] for answer in first) == 48
        if not stream:
            assert [answer.usage_metadata["output_tokens"] for answer in first] == [12] * 4


async def test_what_it_refuses_is_typed(url):
    async with OpenAICompatibleGenerator(url, max_tokens=5000) as generator:
        with pytest.raises(RequestRejected, match="max_tokens") as caught:
            await generator.draw(request(1))
        assert caught.value.status == 400
    async with OpenAICompatibleGenerator(url, model="other") as generator:
        with pytest.raises(RequestRejected, match="other"):
            await generator.draw(request(1))


async def test_cancelled_draws_end_on_the_server(url):
    async with OpenAICompatibleGenerator(url, max_tokens=200, extra_body={"ignore_eos": True}) as generator:
        drawing = [asyncio.create_task(generator.draw(request(seed))) for seed in range(8)]
        await until(lambda: asyncio.to_thread(running_requests, url), 8)
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)
        await until(lambda: asyncio.to_thread(running_requests, url), 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_desk(url, stream):
    await check_guard(url, prompts=12, together=12, choices="server", stream=stream)


async def test_draws_are_right_as_often_as_the_local_generators(url):
    await check_pass_rate(url, choices="server")


async def test_a_cancelled_request_ends_on_the_server(url):
    (_, messages), *_ = asked(1)
    async with desk_guard(url, choices="server") as guard:
        asking = asyncio.create_task(guard.arun(messages))
        await until(lambda: asyncio.to_thread(running_requests, url), 2)
        asking.cancel()
        await until(lambda: asyncio.to_thread(running_requests, url), 0)
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()


async def test_rolling_beside_one_call_and_loops(url):
    found = await served.measure(url, 4)
    served.show(found)
    drawn = {name: row["tokens"] for name, row in found.items()}
    assert drawn["[4] x 8"] < drawn["best-of-32"]
    # Its draws are cancelled on the server once one has passed.
    assert drawn["rolling, auto"] < drawn["best-of-32"]


@pytest.mark.parametrize("kind", ["vllm", "vllm-pooling"])
@pytest.mark.parametrize("inputs", ["ids", "text"])
async def test_its_scores_are_our_scores(reward_url, kind, inputs):
    ours = await scores_of(RewardModel.load(str(model_path("reward"))))
    async with RemoteRewardModel(reward_url, kind=kind, tokenizer=str(model_path("reward")), inputs=inputs) as remote:
        theirs = await scores_of(remote)
    print(kind, inputs, "largest difference", max(abs(one - other) for one, other in zip(ours, theirs, strict=True)))
    assert theirs == pytest.approx(ours, abs=1e-4)


QUESTION = """Question: {prompt}

Answer: {answer}

Is the answer about winter? Say Yes or No."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A cross-encoder, and the server of it; heads of 64 channels, as vLLM's kernels want them."""
    folder = tmp_path_factory.mktemp("vllm-pairs")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 512}
    model = cross_encoder(folder / "model", **sizes)
    with serve(folder, model, "--served-model-name", "rm", "--runner", "pooling") as base_url:
        yield model, base_url


def by_spec(folder, text):
    """Scores by a spec file."""
    path = folder / "scorer.toml"
    path.write_text(text)
    scorer = load_scorer(path)
    try:
        return scorer.score([HumanMessage(PROMPT)], [AIMessage(answer) for answer in ANSWERS])
    finally:
        scorer.close()


@pytest.mark.parametrize("name", ["classify", "pooling", "score", "rerank"])
def test_specs_of_a_route_give_the_local_kind_s_scores(request, tmp_path, name):
    if name in ("classify", "pooling"):
        kind, model, url = "template", model_path("reward"), request.getfixturevalue("reward_url")
    else:
        kind, (model, url) = "pair", request.getfixturevalue("pairs")
    ours = by_spec(tmp_path, f'kind = "{kind}"\nmodel = "{model}"\n')
    table = f'[route]\nserver = "vllm"\nname = "{name}"\ntokenizer = "{model}"\n'
    theirs = by_spec(tmp_path, f'kind = "route"\nendpoint = "{url}"\n{table}')
    print(name, "largest difference", max(abs(one - other) for one, other in zip(ours, theirs, strict=True)))
    assert max(ours) - min(ours) > 0.1
    assert theirs == pytest.approx(ours, abs=1e-3)


def test_a_spec_of_verdict_tokens_gives_the_local_kind_s_scores(url, tmp_path):
    table = f'[token]\nwanted = ["Yes"]\nunwanted = ["No"]\nask = """{QUESTION}"""\n'
    ours = by_spec(tmp_path, f'kind = "token"\nmodel = "{language_model(tmp_path / "lm")}"\n{table}')
    theirs = by_spec(tmp_path, f'kind = "token"\nendpoint = "{url}/v1"\nmodel = "tiny"\n{table}')
    print("token", ours, theirs)
    assert max(ours) - min(ours) > 0.1
    assert theirs == pytest.approx(ours, abs=1e-3)


async def scores_of(scorer):
    session = scorer.session([HumanMessage(PROMPT)])
    try:
        return await session.score([AIMessage(answer) for answer in ANSWERS])
    finally:
        await session.aclose()


def running_requests(url):
    text = httpx.get(f"{url}/metrics", timeout=10).text
    line = next(line for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
    return float(line.rsplit(" ", 1)[1])


async def until(measure, wanted):
    async with asyncio.timeout(120):
        while await measure() != wanted:
            await asyncio.sleep(0.02)


def test_its_page(url, tmp_path, capsys):
    run_page("servers/vllm.md", url, tmp_path)
    # A model this small may well have nothing to say to a request for a toast.
    assert capsys.readouterr().out.endswith("\n")
