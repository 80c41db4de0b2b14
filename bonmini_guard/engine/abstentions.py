"""One request, one decision: whoever retries after an abstention gets the same abstention, and no second chance."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic, perf_counter
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from bonmini_guard.conversation import Turn
from bonmini_guard.engine.containment import current
from bonmini_guard.engine.detach import drawing
from bonmini_guard.engine.limiter import request_lane
from bonmini_guard.engine.result import GuardResult, state_of
from bonmini_guard.forks import Lock

#: Abstentions that are remembered at a time.
MOST = 4096

Caller = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Entry:
    caller: Any
    until: float
    result: GuardResult


class Ledger:
    """Abstentions of the last seconds, without texts, each for whoever asked: a conversation, a task or a thread.

    LangChain's ``with_retry`` asks again after any error, and what it asks looks like a new request. An abstention after which a
    candidate had a score is final; an outage is not.

    Args:
        seconds: that an abstention is remembered for; 0 remembers none.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self.common: dict[Any, tuple[tuple[Any, ...], Any]] = {}  # what else guards share, by what makes it: of what, and it

    def __reduce__(self) -> tuple[type[Ledger], tuple[float]]:
        return type(self), (self.seconds,)

    def find(self, messages: Sequence[BaseMessage], options: Mapping[str, Any], caller: Caller) -> GuardResult | None:
        """The abstention that this caller was given for this request, if there was one; it was billed then."""
        if not self._entries:
            return None
        with self._lock.held:
            asking = caller()
            key = _key(messages, options, asking)
            entry = self._entries.get(key)
            # Another task or thread may have the place in memory of one that is gone.
            if entry is None or entry.until < monotonic() or (entry.caller is not None and entry.caller() is not asking):
                return None
            # The time that on_abstain may take is this call's, which begins now.
            timings = replace(entry.result.timings, decided=perf_counter() + entry.result.timings.total)
            return replace(entry.result, usage={}, timings=timings)

    def keep(self, result: GuardResult, messages: Sequence[BaseMessage], options: Mapping[str, Any], caller: Caller) -> None:
        """Remember an abstention that is final; nothing else."""
        if not self.seconds or result.decision != "abstained" or all(candidate.score is None for candidate in result.candidates):
            return
        with self._lock.held:
            asking = caller()
            portable = replace(result, **state_of(replace(result, with_texts=False)))
            entry = _Entry(None if isinstance(asking, str) else weakref.ref(asking), monotonic() + self.seconds, portable)
            key = _key(messages, options, asking)
            self._entries.pop(key, None)
            self._entries[key] = entry
            while self._entries and (len(self._entries) > MOST or next(iter(self._entries.values())).until < monotonic()):
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: the guard decides otherwise now."""
        with self._lock.held:
            self._entries.clear()


def caller_of(config: RunnableConfig | None, sync: bool = False) -> Caller:
    """Who asks: the conversation (LangGraph's ``thread_id``), else the outermost task that waits for this one, or the thread."""
    conversation = ((config or {}).get("configurable") or {}).get("thread_id")
    if conversation is not None and not drawing.get():  # other draws of another guard ask for themselves
        return lambda: str(conversation)
    if not sync:
        return _outermost
    # Taken now: the request itself runs in another thread.
    here = _outermost()
    return lambda: here


def _outermost() -> Any:
    """The task that waits for all others: chains run each step in a task of its own, and a retry around them runs them anew."""
    task = current()
    if task is None:
        return threading.current_thread()
    waiting: dict[Any, asyncio.Task[Any]] = {}
    running: dict[Any, asyncio.Task[Any]] = {}
    each: Any
    for each in asyncio.all_tasks():
        awaited = getattr(each, "_fut_waiter", None)
        waiting |= dict.fromkeys([awaited, *getattr(awaited, "_children", ())], each)  # children: of asyncio.gather
        # An eager task runs inside of the one that begins it, and that will wait for it; but nobody waits for a request's draws.
        # Before Python 3.12 there are none; what seems to run there beside this one is of a loop inside of a loop.
        begun = hasattr(each, "get_context") and each is not task and getattr(coroutine := each.get_coro(), "cr_running", False)
        if begun and each.get_context().get(request_lane) is request_lane.get():
            running[coroutine.cr_frame] = each
    frame: Any = sys._getframe()
    while running and frame is not None:
        task, frame = running.pop(frame, task), frame.f_back
    while task in waiting:
        task = waiting[task]
    return task


def _told(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return object.__repr__(value)


def _key(messages: Sequence[BaseMessage], options: Mapping[str, Any], asking: Any) -> Hashable:
    said = [[turn.role, turn.name, turn.digest()] for turn in map(Turn.of, messages)]
    whole = json.dumps([said, sorted((name, _told(value)) for name, value in options.items())])
    return hashlib.blake2b(whole.encode(), digest_size=16).digest(), asking if isinstance(asking, str) else id(asking)
