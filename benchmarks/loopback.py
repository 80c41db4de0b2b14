"""A loopback server of the tests in a process of its own: ``python -m benchmarks.loopback tgi`` prints its address.

It serves until its standard input ends, that is, until whoever started it is done with it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.adapters.loopback import LoopbackServer
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.tgi_server import TGIServer

SERVERS: dict[str, type[LoopbackServer]] = {"tgi": TGIServer, "openai": OpenAIServer}


@contextmanager
def in_process(name: str) -> Iterator[str]:
    """The address of a server in another process, so that client and server do not share an interpreter."""
    process = subprocess.Popen([sys.executable, "-m", __name__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


async def serve(name: str) -> None:
    """Serve until standard input ends."""
    async with SERVERS[name]() as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
