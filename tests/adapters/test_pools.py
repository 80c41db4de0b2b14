"""Small connection pools behind one transport: connections are used again, counted until their answer is read, and closed."""

from __future__ import annotations

import asyncio

import httpx
import httpx2
import pytest

from bonmini_guard.adapters import pools

from .drawing import until
from .tgi_server import TGIServer


@pytest.fixture(params=[httpx, httpx2], ids=lambda library: library.__name__)
async def client(request, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pools, "POOL_SIZE", 2)
    async with request.param.AsyncClient(mounts=pools.mounts(request.param, True, 6)) as client:
        yield client


@pytest.fixture
async def server():
    async with TGIServer() as running:
        yield running


async def post(client, server, **body):
    return (await client.post(server.url, json={"inputs": "x", **body})).json()


def loads(client):
    """Requests under way in each pool."""
    (transport,) = client._mounts.values()
    return transport.busy


async def test_few_requests_share_few_connections(client, server):
    for _ in range(10):
        await post(client, server)
    assert server.connections == 1
    assert loads(client) == [0, 0, 0]


async def test_many_at_once_spread_over_the_pools_and_beyond_them(client, server):
    server.slow = 0.05
    tasks = [asyncio.create_task(post(client, server)) for _ in range(9)]
    while server.busy < 9:
        await asyncio.sleep(0.001)
    assert loads(client) == [3, 3, 3]
    await asyncio.gather(*tasks)
    assert loads(client) == [0, 0, 0]


@pytest.mark.parametrize("fault", ["reset", "half"])
async def test_failures_and_cancellations_give_their_place_back(client, server, fault):
    server.faults = [fault, "stall"]
    with pytest.raises((httpx.HTTPError, httpx2.HTTPError)):
        await post(client, server)
    task = asyncio.create_task(post(client, server))
    await until(lambda: not server.faults)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loads(client) == [0, 0, 0]
    assert (await post(client, server))[0]["generated_text"]


async def test_a_stream_counts_until_it_is_closed(client, server):
    async with client.stream("POST", server.url, json={"inputs": "x", "stream": True}) as response:
        assert loads(client) == [1, 0, 0]
        assert [line async for line in response.aiter_lines()]
    assert loads(client) == [0, 0, 0]


async def test_closing_the_client_closes_every_pool(client, server):
    server.slow = 0.02
    await asyncio.gather(*(post(client, server) for _ in range(6)))
    assert server.open == 6
    await client.aclose()
    while server.open:
        await asyncio.sleep(0.001)


def test_behind_a_proxy_the_client_finds_it_itself(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert pools.mounts(httpx, True, 6) is None
