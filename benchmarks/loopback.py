"""A loopback server of the tests in a process of its own: ``python -m benchmarks.loopback tgi`` prints its address.

It serves until its standard input ends, that is, until whoever started it is done with it.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def started(command: list[str], log: Any, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of Python, and the address that its log, a file with a name, tells; ``more`` is of its environment."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    process = subprocess.Popen([sys.executable, *command], stderr=log, stdout=log, text=True, env=environment)
    try:
        while (found := re.search(r"http://127\.0\.0\.1:\d+", Path(log.name).read_text())) is None:
            if process.poll() is not None:
                raise SystemExit(Path(log.name).read_text())
            time.sleep(0.05)
        yield process, found.group()
    finally:
        process.kill()
        process.wait()


def resident(pid: int) -> float:
    """MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def serve(name: str) -> None:
    """Serve until standard input ends."""
    async with SERVERS[name]() as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
