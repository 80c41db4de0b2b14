"""After hundreds of guarded requests with early exits, faults on both sides and timeouts, nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from bonmini_guard import BestOfMiniN
from bonmini_guard.adapters import RemoteRewardModel, TGIGenerator
from bonmini_guard.adapters.circuit import CircuitBreaker
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.limiter import Limiter
from bonmini_guard.errors import GenerationError

from .drawing import lasting_threads, open_files, until
from .reward_server import RewardServer
from .tgi_server import TGIServer

EAGER = {"schedule": [2], "exit": "eager"}
SHAPES = ((60, EAGER), (0.05, EAGER), (60, {"max_draws": 4, "in_flight": 2}), (60, {"schedule": [1, 1, 2], "lookahead": 2}))
FAULTS = [None] * 12 + [429, 503, 500, 404, "half", "reset", "garbage", "stall"]


def worth(pair):
    """About half of all answers pass."""
    return 1.0 if sum(map(ord, pair[1]["content"])) % 2 else -1.0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list open files")
@pytest.mark.filterwarnings("ignore:uncalibrated")
async def test_no_task_socket_or_thread_outlives_its_request():
    source, limiter = random.Random(1), Limiter(60)
    # The loop for sync calls is one for all guards of the process, and lasts.
    await asyncio.to_thread(run_sync, lambda: asyncio.sleep(0))
    async with TGIServer() as server, RewardServer(worth) as rewards:
        files, threads = open_files(), lasting_threads()
        server.slow = lambda body: source.choice([0.0, 0.0, 0.02])
        patience = {"timeout": 20.0, "attempt_timeout": 1.0, "retries": 1, "backoff": 0.001}
        circuits = [CircuitBreaker(failures=3, cooldown=0.02) for _ in range(2)]
        scorer = RemoteRewardModel(rewards.url, kind="bonmini", has_zero=True, circuit=circuits[0], **patience)
        async with TGIGenerator(server.url, token="", circuit=circuits[1], **patience) as generator, scorer:
            parts = {
                "generator": generator,
                "reward_model": scorer,
                "max_concurrency": (limiter := Limiter(60)),
            }
            patient, hasty, rolling, ahead = [
                await asyncio.to_thread(BestOfMiniN, timeout=seconds, **shape, **parts) for seconds, shape in SHAPES
            ]
            for faulty in (server, rewards):
                faulty.faults = lambda path, body: source.choice(FAULTS)
            ends = Counter()
            for _ in range(6):
                ends.update(
                    await asyncio.gather(*(ending(guard) for guard in [patient] * 20 + [hasty] * 5 + [rolling] * 15 + [ahead] * 10))
                )
            for faulty in (server, rewards):
                faulty.faults = []
            # A busy machine may have been too slow for every one of them.
            async with asyncio.timeout(60):
                while (end := await ending(patient)) != "passed":
                    await asyncio.sleep(0.05)
            ends[end] += 1
            ours = {task for task in asyncio.all_tasks() if "test_no_task" not in repr(task) and "loopback" not in repr(task)}
            assert {repr(task) for task in ours} == set()
            assert limiter.here().free == 60
        assert sum(ends.values()) == 301
        assert len(ends) >= 3, ends  # which others there are depends on the machine
        assert server.closed_early > 0  # early exits reached the server
        while server.open or rewards.open:
            await asyncio.sleep(0.01)
        assert open_files() <= files
    # Threads of the pool that asyncio keeps for blocking calls stay, and are bounded by it.
    # The one that looks whether loops turn ends a moment after the last request.
    await until(lambda: lasting_threads() <= threads)  # those of others may have ended meanwhile


async def ending(guard):
    try:
        return (await guard.arun("question")).reason
    except GenerationError:
        return "nothing arrived"
