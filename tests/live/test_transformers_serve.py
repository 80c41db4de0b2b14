"""``transformers serve``, a server that silently ignores ``n``. ``make live-transformers``."""

from __future__ import annotations

import pytest

from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.errors import ConfigurationError
from tests.live.checks import check_draws, check_guard, check_pass_rate, loop_of, request
from tests.live.servers import free_port, language_model, python, running
from tests.pages import run_page

pytestmark = pytest.mark.live


def serve(folder, *more):
    python()
    port, model = free_port(), str(language_model(folder / "lm"))
    arguments = ["-m", "transformers.cli.transformers", "serve", model, "--device", "cpu"]
    return model, running([*arguments, "--host", "127.0.0.1", "--port", str(port), *more], port, "/health", folder / "serve.log")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model, started = serve(tmp_path_factory.mktemp("transformers"))
    with started as base_url:
        yield base_url, model


async def test_draws(server):
    url, model = server
    await check_draws(url, model=model)


async def test_an_ignored_n_gives_no_copies(server):
    url, model = server
    async with OpenAICompatibleGenerator(url, model=model, choices="server", max_tokens=12) as generator:
        several = await loop_of(generator, [1, 2, 3, 4])
        assert len({answer.text for answer in several}) == 4
        assert all(answer.usage_metadata["input_tokens"] > 0 for answer in several)


async def test_its_list_of_models_is_of_no_help_offline(server):
    url, _ = server
    async with OpenAICompatibleGenerator(url, retries=0) as generator:
        with pytest.raises(ConfigurationError, match="model="):
            await generator.draw(request(1))


async def test_the_desk(tmp_path):
    # In batches: otherwise it computes one answer after the other.
    model, started = serve(tmp_path, "--continuous-batching", "--cb-num-blocks", "512", "--cb-block-size", "32")
    with started as url:
        await check_guard(url, together=6, model=model)
        await check_pass_rate(url, prompts=16, draws=4, model=model)


def test_its_page(server, tmp_path, capsys):
    url, model = server
    run_page("servers/transformers-serve.md", url, tmp_path, model)
    # A model this small may well have nothing to say to a request for a toast.
    assert capsys.readouterr().out.endswith("\n")
