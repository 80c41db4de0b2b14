"""Drawing: which draws of a request are launched when, what becomes of each that arrives, and the queue in which it waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextvars import Context
from time import perf_counter
from typing import TYPE_CHECKING, TypeGuard

from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message

from bonmini_guard.engine.containment import as_failure, current, is_failure
from bonmini_guard.engine.detach import is_graph_signal
from bonmini_guard.engine.protocols import DrawRequest, EndRequest, Generator, GroupGenerator
from bonmini_guard.engine.result import Candidate
from bonmini_guard.engine.snapshot import ends, frozen, identity, why_none
from bonmini_guard.errors import GenerationError, Unanswered

if TYPE_CHECKING:
    from bonmini_guard.engine.engine import Request

#: A rolling exit's next draw waits for the score of the one before for so much of its time, and so many seconds at least.
SCORING_SHARE, SCORING_WAIT = 0.03, 0.05


class Arrivals:
    """Draws in order of arrival. ``asyncio.Queue`` hands items out one at a time, at three times the cost of a draw's record."""

    def __init__(self) -> None:
        self._items: list[Candidate] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Candidate) -> None:
        """Add an item and wake the reader; never blocks. Call it on the reader's loop."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Candidate]:
        """All items that have arrived, at least one; waits for the first."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items


def draw_seed(seed: int, index: int) -> int:
    """The seed of one draw, in [0, 2**31): splitmix64 of the request's seed and the draw's number."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 33


def begin_loop(request: Request, draws: int) -> None:
    """The next loop: from here on its draws count, and those that were launched ahead and have arrived do so now."""
    if request.rolling:
        if not request.scored:
            _refill(request)
        return
    first = len(request.candidates)
    _launch(request, first + draws)
    loop = request.launched[first : first + draws]
    request.candidates += loop
    for candidate in loop:
        candidate.loop = request.loops
        if candidate.finished is not None:
            _count(request, candidate)
    request.loops += 1
    if request.engine.lookahead:
        _launch_ahead(request)


def _refill(request: Request, unscored: bool = False) -> None:
    """Keep draws in flight, counting those not decided on yet; once so many in a row failed, more only when none is left.

    As in a log, where nothing tells the two apart, an answer that could not be scored has failed, too.
    With ``unscored`` those that have not arrived: by a slow scorer draws would come in another order than was certified.
    """
    done = sum(candidate.finished is not None for candidate in request.launched) if unscored else len(request.candidates)
    last = request.candidates[-request.width :] if done == len(request.candidates) else []
    failing = max(request.failing, len(last) * all(candidate.failed for candidate in last))
    if failing < request.width or (done == len(request.launched) and not unscored):
        _launch(request, min(request.policy.budget, done + request.width))


def _launch_ahead(request: Request) -> None:
    """Keep draws of later loops running, unless draws fail: a group when the last one is through, else each by itself.

    They take no turn of anybody: where there is a limiter, only as many are launched as it has places free.
    """
    running = sum(candidate.finished is None for candidate in request.launched[len(request.candidates) :])
    if request.failing or (running and _draws_groups(request.engine.generator)):
        return
    more = request.engine.lookahead - running
    if request.places is not None:
        more = min(more, request.places.free - sum(candidate.started is None for candidate in request.launched))
    _launch(request, min(request.policy.budget, len(request.launched) + more))


def _launch(request: Request, until: int) -> None:
    """Have the draws up to a number made, those that are not launched yet; none once the request is over."""
    if request.closed or request.over.done():
        return
    more = [Candidate(index, request.loops, draw_seed(request.seed, index)) for index in range(len(request.launched), until)]
    request.launched += more
    generator = request.engine.generator
    create = asyncio.get_running_loop().create_task
    if more and _draws_groups(generator):
        request.tasks.append(create(_draw_group(request, generator, more), context=request.context.copy()))
        return
    for candidate in more:
        # A context of its own for each draw: one draw's context variables must not reach another.
        request.tasks.append(create(_draw(request, generator, candidate), context=request.context.copy()))  # type: ignore[arg-type]


async def _draw(request: Request, generator: Generator, candidate: Candidate) -> None:
    outcome: object
    try:
        # Not "async with": this line runs once a draw, and acquire() alone is the cheaper half of it.
        if request.places is not None:
            await request.places.acquire()
        try:
            candidate.started = perf_counter() - request.begun
            outcome = await generator.draw(DrawRequest(request.messages, candidate.seed, candidate.index, request.options))
        finally:
            if request.places is not None:
                request.places.release()
    except BaseException as error:
        if not is_failure(error, [current()]):
            # Cancelled, or the process is to end: recorded first, for the request is waiting.
            _arrive(request, candidate, error)
            raise
        outcome = EndRequest("interrupt", signal=error) if is_graph_signal(error) else as_failure(error)
    _arrive(request, candidate, outcome)


async def _draw_group(request: Request, generator: GroupGenerator, loop: Sequence[Candidate]) -> None:
    failure: BaseException = GenerationError("the generator ended without answering this draw")
    try:
        async with request.places or contextlib.nullcontext():
            for candidate in loop:
                candidate.started = request.elapsed()
            stream = generator.draw_group([DrawRequest(request.messages, c.seed, c.index, request.options) for c in loop])
            async with contextlib.aclosing(stream):  # type: ignore[type-var]
                async for position, outcome in stream:
                    if position < 0 or loop[position].finished is not None:
                        raise ValueError(
                            f"the generator answered draw {position} of the loop, which is answered or was not asked for"
                        )
                    _arrive(request, loop[position], outcome)
    except BaseException as error:
        failure = error
        if not is_failure(error, [current()]):
            raise
        failure = as_failure(error)
    finally:
        for candidate in loop:
            if candidate.finished is None:
                _arrive(request, candidate, failure)


def _arrive(request: Request, candidate: Candidate, outcome: object) -> None:
    if request.closed:
        return
    if isinstance(outcome, EndRequest):
        request.ends[candidate.index] = outcome
        outcome = outcome.message or outcome.__cause__ or outcome
    if isinstance(outcome, AIMessage):
        _freeze(request, candidate, outcome)
    elif isinstance(outcome, BaseException):
        candidate.error = outcome
        if isinstance(outcome, KeyboardInterrupt | SystemExit):
            request.exit = outcome
            request.wake()
    else:
        candidate.error = TypeError(f"a generator must give an AIMessage, this one gave {type(outcome).__name__}")
    candidate.finished = perf_counter() - request.begun
    request.failing = 0 if candidate.message is not None else request.failing + 1
    if not request.rolling and candidate.index >= len(request.candidates):
        # Not from here: eager tasks that answer at once would go on inside of one another.
        asyncio.get_running_loop().call_soon(_launch_ahead, request, context=Context())
    elif request.ends:
        _count(request, candidate)
    else:
        request.arrived.put(candidate)
        if 1 < request.width < request.policy.budget:
            wait = max(SCORING_WAIT, SCORING_SHARE * (candidate.finished - (candidate.started or 0.0)))
            asyncio.get_running_loop().call_later(wait, _refill, request, True, context=Context())


def _count(request: Request, candidate: Candidate) -> None:
    """Hand on a draw that has arrived, and whose loop has begun."""
    # Not where the request is decided, cancelled or out of time already.
    if candidate.index in request.ends and not request.over.done():
        request.ended = request.ends[candidate.index]
        request.wake()
    request.arrived.put(candidate)


def _freeze(request: Request, candidate: Candidate, message: AIMessage) -> None:
    """Take a copy, unless nobody else has it: whoever holds the original could change what is served after it was scored."""
    try:
        if isinstance(message, AIMessageChunk):
            message = message_chunk_to_message(message)  # type: ignore[assignment]
        if (why := why_none(message, end := ends(message))) is not None:
            raise Unanswered(why, message.usage_metadata)
        called = message.tool_calls
        if called and request.calls(message) and request.engine.answers.isdisjoint(call["name"] for call in called):
            request.calling.add(candidate.index)
        candidate.message = message if request.hands_over else frozen(message)
        request.keys[candidate.index] = identity(message, end)
    except Exception as error:
        candidate.message, candidate.error = None, error


def _draws_groups(generator: object) -> TypeGuard[GroupGenerator]:
    return callable(getattr(generator, "draw_group", None))
