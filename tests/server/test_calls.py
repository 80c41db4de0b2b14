"""How much of our own code one request runs: what is cheap to write is easily called a thousand times."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import bonmini_guard
from bonmini_guard import BestOfMiniN, RewardModel
from bonmini_guard.adapters import OpenAICompatibleGenerator
from bonmini_guard.engine.bridge import run_sync
from tests.adapters.openai_server import MODEL, OpenAIServer

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")

#: Calls of functions of this package for one ``invoke`` with eight draws (about 510), and for each batch in which the reward
#: model is given them (about 75), of which there are as many as the timing of their arrivals makes: 600 in all with one batch.
MOST, MOST_A_BATCH = 520, 80
HOME = str(Path(bonmini_guard.__file__).parents[1])
OURS = (f"{HOME}/bonmini_guard", f"{HOME}/adapters")


class Calls:
    """Counts calls of our own functions, by place.

    Threads that begin while it counts are counted too, but the one that looks whether loops turn, by the clock. Others call
    :meth:`here`.
    """

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.counting = False

    def here(self) -> None:
        """Count in this thread."""
        sys.setprofile(self._heard)

    def _heard(self, frame, event, argument):
        code = frame.f_code
        if not self.counting or event != "call" or not code.co_filename.startswith(OURS):
            return
        if threading.current_thread().name == "bonmini-guard-held":
            return
        # Neither a coroutine that goes on (RESUME with an argument) nor the frame of a comprehension.
        if code.co_code[frame.f_lasti + 1] == 0 and (not code.co_name.startswith("<") or code.co_name == "<lambda>"):
            self.counted[f"{frame.f_code.co_filename.removeprefix(HOME)}:{frame.f_code.co_qualname}"] += 1

    async def here_soon(self) -> None:
        self.here()


async def test_one_invoke_with_eight_draws_makes_few_calls(folder):
    calls = Calls()
    threading.setprofile(calls._heard)
    try:
        async with OpenAIServer() as server:
            generator = OpenAICompatibleGenerator(server.url + "/v1", model=MODEL)
            guard = BestOfMiniN(generator=generator, reward_model=RewardModel.load(folder), schedule=[8], threshold=-100.0)
            run_sync(calls.here_soon)  # the loop that answers sync calls may have begun long ago

            def ask() -> None:
                calls.here()
                guard.invoke("a question")  # connects, and warms up
                calls.counting = True
                guard.invoke("another question")
                calls.counting = False

            await asyncio.to_thread(ask)
    finally:
        threading.setprofile(None)
        sys.setprofile(None)
    (batches,) = (count for place, count in calls.counted.items() if place.endswith("RewardModel._score_in_session"))
    assert 100 < calls.counted.total() <= MOST + MOST_A_BATCH * batches, calls.counted.most_common(40)
