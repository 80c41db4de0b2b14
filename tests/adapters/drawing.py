"""What the tests of generators share: guards, waiting, and what is left behind."""

import asyncio
import os
import threading

from langchain_core.messages import HumanMessage

from bonmini_guard import BestOfMiniN
from bonmini_guard.engine.protocols import DrawRequest
from bonmini_guard.testing import FakeRewardModel


def guard_of(generator, scores, **settings):
    settings = {"mode": "guardrail", "mini_n": 4, "max_loops": 1, "threshold": 0.0, **settings}
    return BestOfMiniN(generator=generator, reward_model=FakeRewardModel(scores), **settings)


def request(seed=7, messages=None, index=0, **options):
    return DrawRequest(messages or [HumanMessage("q")], seed, index, options)


async def building(kind, url, **usual):
    """Yields what makes generators of a kind, which are closed in the end."""
    made = []

    def build(**settings):
        made.append(kind(settings.pop("base_url", url), **{"backoff": 0.01, "timeout": 50.0, **usual, **settings}))
        return made[-1]

    yield build
    for generator in made:
        await generator.aclose()


async def until(true):
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


def lasting_threads():
    """Threads but those of the event loop's own pool, which is bounded and lives as long as the loop."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def open_files(kind=""):
    """How many open descriptors have ``kind`` in what they stand for."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return len([link for link in links if os.path.islink(link) and kind in os.readlink(link)])
