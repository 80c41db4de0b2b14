"""Hostile parts drawn by chance: nothing bad is served, no request is late, nothing stays. More cases with ``make fuzz``."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .hostile import TIMEOUT, one
from .own_time import OwnTime

CASES = int(os.environ.get("BONMINI_GUARD_FUZZ_CASES", "40"))
#: Seconds beyond the timeout; the fault matrix measures it on an idle machine.
LATE = 1.0

pytestmark = pytest.mark.filterwarnings("ignore")


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
def test_hostile_parts_neither_fool_nor_hold_a_request(source):
    async def request():
        with OwnTime() as own:
            ending = await one(source)
        assert not ending.wrong, (ending.kind, ending.injected)
        assert own.seconds < TIMEOUT + LATE, (ending.kind, ending.injected)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        _, still = await asyncio.wait(left, timeout=60) if left else ((), ())
        assert not still

    asyncio.run(request())
