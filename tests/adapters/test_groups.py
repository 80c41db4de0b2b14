"""Calls at the same time: none outlives its caller, and none is waited for that nobody needs."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage

from bonmini_guard.adapters.groups import all_or_none, in_one_call

from .drawing import request


class Calls:
    """Some answer at once or fail; the others last until they are cancelled."""

    def __init__(self):
        self.gone = []

    async def lasting(self, number):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.gone.append(number)

    async def together(self, asked):
        return [ValueError("of all that were asked for at once one came back, and failed")]

    async def draw(self, asked):
        return AIMessage("at once") if asked.index == 1 else await self.lasting(asked.index)


async def failing():
    raise ValueError("broken")


async def test_when_one_call_fails_the_others_are_cancelled_and_gone_before_its_error_goes_on():
    calls = Calls()
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(all_or_none([calls.lasting(0), failing(), calls.lasting(2)]), 30)
    assert sorted(calls.gone) == [0, 2]


async def test_closing_draws_cancels_those_that_run_and_waits_for_them():
    calls = Calls()
    draws = in_one_call(calls.draw, calls.together, [request(index, index=index) for index in range(4)])
    position, error = await anext(draws)
    assert (position, type(error)) == (0, ValueError)
    position, answer = await anext(draws)
    assert (position, answer.text) == (1, "at once")
    await asyncio.wait_for(draws.aclose(), 30)
    assert sorted(calls.gone) == [2, 3]
