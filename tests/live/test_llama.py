"""llama.cpp's Python server, which ignores ``n`` and serves one request at a time. ``make live-llama``."""

from __future__ import annotations

import pytest

from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.demo import room
from tests.live.checks import check_draws, check_guard, check_pass_rate, loop_of
from tests.live.servers import free_port, python, running
from tests.pages import run_page

pytestmark = pytest.mark.live

#: Left out, the server takes top 40, top_p 0.95, min_p 0.05 and a penalty for repetition of 1.1.
SAMPLING = {"top_k": 50, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


def serve(folder, *more):
    python()
    file, port = room.gguf_file(), free_port()
    arguments = ["-m", "llama_cpp.server", "--model", str(file), "--model_alias", "tiny", "--n_ctx", "512", "--seed", "1"]
    arguments += ["--host", "127.0.0.1", "--port", str(port), *more]
    return running(arguments, port, "/v1/models", folder / "llama.log")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("llama")) as base_url:
        yield base_url


@pytest.mark.parametrize("mode", ["chat", "completion"])
async def test_draws(url, mode):
    await check_draws(url, mode=mode)


async def test_an_ignored_n_gives_no_copies(url):
    async with OpenAICompatibleGenerator(url, choices="server", max_tokens=12) as generator:
        several = await loop_of(generator, [1, 2, 3, 4])
        assert len({answer.text for answer in several}) == 4


async def test_the_desk(url):
    await check_guard(url, extra_body=SAMPLING)
    await check_pass_rate(url, prompts=16, draws=4, extra_body=SAMPLING)


def test_its_page(url, tmp_path, capsys):
    run_page("servers/llama-cpp.md", url, tmp_path)
    # A model this small may well have nothing to say to a request for a toast.
    assert capsys.readouterr().out.endswith("\n")


async def test_with_speculative_decoding(tmp_path):
    with serve(tmp_path, "--draft_model", "prompt-lookup-decoding", "--draft_model_num_pred_tokens", "4") as base_url:
        await check_draws(base_url)
        await check_guard(base_url, extra_body=SAMPLING)
