"""Behind every retry the same share is served, and served and bad, as without; one that is told otherwise serves more bad ones."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain.agents")
pytest.importorskip("scipy")
from benchmarks.retries import BEHIND, World, shares
from bonmini_guard import GuardProfile

pytestmark = pytest.mark.filterwarnings("ignore:uncalibrated")
PROFILE = GuardProfile(mode="guardrail", schedule=[4, 4], thresholds=[1.0, 1.0])
REQUESTS = 150


def shares_behind(name, memory):
    return asyncio.run(shares(BEHIND[name](World(3), PROFILE, memory), REQUESTS))


@pytest.mark.parametrize("name", [name for name in BEHIND if name != "nothing"])
def test_a_retry_changes_no_rate_unless_it_is_told_to(name):
    alone = shares_behind("nothing", 60.0)
    assert 0 < alone["served_and_bad"] < alone["served"] < 1
    assert shares_behind(name, 60.0) == alone
    assert shares_behind(name, 0.0)["served_and_bad"] > alone["served_and_bad"]
