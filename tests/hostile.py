"""Parts of a guard that misbehave in ways drawn by chance, for the fuzz test and the fault matrix."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from langchain_core.messages import AIMessage

from bonmini_guard import BestOfMiniN, GuardResult
from bonmini_guard.errors import GenerationError, NoAcceptableResponse, TooBusy

#: Seconds of a request, and how long what ignores its cancellation goes on.
TIMEOUT, STUBBORN = 0.25, 0.6
#: How a request may end but with a result.
TYPED = (GenerationError, NoAcceptableResponse, TooBusy)
RAISED = (OSError, TimeoutError, ValueError, RecursionError, MemoryError, StopIteration, asyncio.CancelledError, GeneratorExit)
KINDS = ("well", "well", "well", "later", "hangs", "ignores cancellation", "raises", "nonsense", "blocks a thread")
NONSENSE = (None, "text", b"", 3, {}, [], [float("nan")], ["9"], [True], [9.0] * 40, object())


def worth(text: str) -> float:
    """What an answer is truly worth, between -2 and 1: one in three passes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32 * 3 - 2


async def _stubborn() -> None:
    end = time.monotonic() + STUBBORN
    while (left := end - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except BaseException:
            continue


class Hostile:
    """A generator, a scorer, its sessions and an observer's callbacks, each call of which does what chance says.

    Args:
        source: of chance.
        faulty: parts that misbehave at all.
    """

    has_zero = True

    def __init__(self, source: Random, faulty: frozenset[str]) -> None:
        self._source, self._faulty = source, faulty
        self._lock = threading.Lock()
        #: What was injected, by part and kind.
        self.injected: list[tuple[str, str]] = []

    async def act(self, part: str, result: Any) -> Any:
        """Give the result, or misbehave."""
        with self._lock:
            kind = self._source.choice(KINDS) if part in self._faulty else "well"
            raised, nonsense = self._source.choice(RAISED), self._source.choice(NONSENSE)
        if kind != "well":
            self.injected.append((part, kind if kind != "raises" else f"raises {raised.__name__}"))
        if kind == "raises":
            raise raised
        if kind == "nonsense":
            return nonsense
        await {"later": lambda: asyncio.sleep(0.02), "hangs": lambda: asyncio.sleep(30), "ignores cancellation": _stubborn}.get(
            kind, lambda: asyncio.sleep(0)
        )()
        if kind == "blocks a thread":
            await asyncio.to_thread(time.sleep, 0.05)
        return result

    async def draw(self, request: Any) -> Any:
        """An answer of the draw's own."""
        return await self.act("generator", AIMessage(f"answer {request.seed}"))

    def session(self, messages: Any) -> Hostile:
        """Itself."""
        return self

    async def score(self, candidates: Any) -> Any:
        """The truth."""
        return await self.act("scorer", [worth(str(candidate.text)) for candidate in candidates])

    async def aclose(self) -> None:
        """Nothing is held."""
        await self.act("session", None)

    async def say(self, result: GuardResult) -> Any:
        """For abstentions."""
        return await self.act("on_abstain", "no answer")


@dataclass
class Ending:
    """How one request ended.

    Attributes:
        seconds: it took.
        kind: decision, or the error's type.
        wrong: a bad or unscored answer passed for a good one, a guardrail served what it must not, or the error has no type.
        injected: what went wrong on purpose.
    """

    seconds: float
    kind: str
    wrong: bool
    injected: list[tuple[str, str]]


async def one(source: Random) -> Ending:
    """One request of a guard made by chance."""
    parts = [part for part in ("generator", "scorer", "session", "on_abstain") if source.random() < 0.6]
    hostile = Hostile(source, frozenset(parts))
    mode = source.choice(["guardrail", "accelerator"])
    settings: dict[str, Any] = {
        **source.choice(
            [
                {"schedule": source.choice([[1], [2, 2], [4], [1, 3]]), "exit": source.choice(["loop", "eager"])},
                {"schedule": [2, 2], "lookahead": 2},
                {"max_draws": 4, "in_flight": source.choice([1, 2, "auto"])},
            ]
        ),
        "on_abstain": source.choice(["error", "message", hostile.say]) if mode == "guardrail" else "error",
        "max_concurrency": source.choice([None, 2]),
    }
    guard = BestOfMiniN(generator=hostile, reward_model=hostile, mode=mode, threshold=0.0, timeout=TIMEOUT, **settings)
    begun = time.monotonic()
    kind, wrong = "", False
    try:
        message = await guard.ainvoke("question", seed=source.getrandbits(32))
        about = message.response_metadata["bonmini_guard"]
        kind = about["decision"]
        bad = message.text.startswith("answer ") and worth(message.text) < 0
        wrong = (kind == "accepted" and (bad or about["score"] is None)) or (
            mode == "guardrail" and kind not in ("accepted", "abstained", "fallback")
        )
    except TYPED as error:
        kind = type(error).__name__
    except (Exception, asyncio.CancelledError) as error:
        # What on_abstain itself raises, or gives, is its caller's.
        kind, wrong = type(error).__name__, not any(part == "on_abstain" for part, _ in hostile.injected)
    return Ending(time.monotonic() - begun, kind, wrong, hostile.injected)


__all__ = ["TIMEOUT", "Ending", "Hostile", "one", "worth"]
