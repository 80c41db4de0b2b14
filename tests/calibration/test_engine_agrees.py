"""The exact replay against the live engine: logged draws are dealt in random orders to the engine that runs in production."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from langchain_core.messages import HumanMessage

from bonmini_guard.calibration.replay import replay
from bonmini_guard.engine.engine import Engine
from bonmini_guard.errors import GenerationError
from bonmini_guard.policy.profile import GuardProfile
from bonmini_guard.testing import FakeGenerator, FakeRewardModel
from tests.calibration.helpers import log_of
from tests.calibration.populations import Population

ORDERS = 250
NAN = math.nan
TIED = Population(size=6, digits=0).log(3, 5)
FAILING = log_of(
    [[1.0, NAN, 0.2, NAN, 2.0, -1.0], [NAN, 0.4, 0.4, 0.4, 1.5, -2.0]],
    [[1.0, NAN, 0.0, NAN, 0.0, 1.0], [NAN, 1.0, 0.0, 0.0, 1.0, 0.0]],
)
PROFILES = {
    "guardrail": GuardProfile(mode="guardrail", schedule=(2, 2), thresholds=(1.0, 0.5)),
    "accelerator": GuardProfile(mode="accelerator", schedule=(1, 2, 2), thresholds=(0.0, 1.5, 0.5)),
    "hopeless": GuardProfile(mode="guardrail", schedule=(2, 3), thresholds=(1.0, 0.0), hopeless=(0.0, -math.inf)),
}


async def played(profile, scores, labels, order):
    """One request by the live engine, on the row's candidates in a given order."""
    answers = [RuntimeError("lost") if math.isnan(scores[i]) else str(i) for i in order]
    source = FakeGenerator(answers)
    engine = Engine(source, FakeRewardModel(lambda text: float(scores[int(text)])), profile.policy())
    try:
        result = await engine.run([HumanMessage("p")], seed=0)
    except GenerationError:  # nothing arrived: nothing is served, and no answer exists
        draws = len(source.requests)
        return [False, False, False, False, draws, int(np.searchsorted(np.cumsum(profile.schedule), draws)) + 1]
    good = result.selected is not None and labels[int(result.selected.message.text)] == 1.0
    served = result.decision in ("accepted", "best_effort")
    return [served and good, served and not good, not served and good, result.decision == "accepted", result.draws, result.loops]


@pytest.mark.slow
@pytest.mark.parametrize("log", [TIED, FAILING], ids=["ties", "failures"])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
async def test_the_mean_over_orders_approaches_the_exact_value(profile, log):
    settled = replay(log, profile.mode, profile.schedule, profile.thresholds, profile.hopeless)
    exact = np.stack(
        [settled.served_good, settled.served_bad, settled.abstained_good, settled.accepted, settled.draws, settled.loops], axis=1
    )
    generator = np.random.default_rng(0)
    for row in range(len(log)):
        orders = [generator.permutation(log.scores.shape[1]) for _ in range(ORDERS)]
        # At a time: where all draws of a loop fail, the engine waits before it asks again.
        requests = [played(profile, log.scores[row], log.labels[row], order) for order in orders]
        runs = np.array(await asyncio.gather(*requests), dtype=float)
        error = runs.std(axis=0) / math.sqrt(ORDERS)
        assert np.all(np.abs(runs.mean(axis=0) - exact[row]) <= 4.0 * error + 1e-9 + 0.01 * (error == 0))
