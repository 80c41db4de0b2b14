"""What holds an event loop without awaiting cannot be interrupted: it is noticed from a thread, and told once, with its place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextvars import Context
from types import CodeType, FrameType
from weakref import WeakKeyDictionary

from bonmini_guard.forks import renewed_in_children

logger = logging.getLogger(__name__)

#: Seconds after which one step of a coroutine has held its loop.
HELD = 1.0
#: Seconds between two looks, and between two signs of life of a loop.
BEAT = 0.25
#: What runs a loop: the frames inside it are those of the step under way.
_LOOPS = ("asyncio.base_events", "asyncio.events", "asyncio.runners")
_LIBRARY, _INSTALLED, _OURS = sysconfig.get_path("stdlib"), "site-packages", "bonmini_guard"
#: By the function of ours that calls it.
_PARTS = {
    "_draw": "the generator",
    "_draw_group": "the generator",
    "_score_fresh": "the reward model",
    "_close_session": "the scoring session",
    "_told": "a callback",
    "looped": "a callback",
    "_fallback": "on_abstain",
}


class Turns:
    """Whether a loop turns, while requests run on it; a context of a request. Its methods run on the loop."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.at = 0.0
        self.ticking = False
        self.requests = 0
        #: The step that ran at the last look, and when it was seen first.
        self.step: tuple[int, float] | None = None

    def __enter__(self) -> None:
        self.requests += 1
        if not self.ticking:
            self.thread = threading.get_ident()
            self._tick()
            _watch.begin()

    def __exit__(self, *_: object) -> None:
        self.requests -= 1

    def _tick(self) -> None:
        self.at = time.monotonic()
        # A loop that ended and began again has the old timer still.
        self.ticking = self.requests > 0
        if self.ticking:
            asyncio.get_running_loop().call_later(BEAT, self._tick, context=Context())


class _Watch:
    """Looks at the loops of this process."""

    def __init__(self) -> None:
        self.told: set[CodeType] = set()
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """No loops, and nobody who looks: at first, and after a fork, which threads do not survive."""
        self.lock = threading.Lock()
        self.loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()
        self._looking = False

    def begin(self) -> None:
        """Look, until no loop has a request any more."""
        with self.lock:
            if not self._looking:
                # Without a thread nobody looks; requests go on.
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=self._look, name="bonmini-guard-held", daemon=True).start()
                    self._looking = True

    def _look(self) -> None:
        while True:
            time.sleep(BEAT)
            with self.lock:
                ticking = [
                    (turns, loop.is_running()) for loop, turns in self.loops.items() if turns.ticking and not loop.is_closed()
                ]
                if not ticking:
                    self._looking = False
                    return
            for turns, runs in ticking:
                if runs and turns.requests:
                    self._judge(turns)

    def _judge(self, turns: Turns) -> None:
        now, seen, turns.step = time.monotonic(), turns.step, None
        if now - turns.at < 2 * BEAT or (frame := sys._current_frames().get(turns.thread)) is None:
            return
        frames = list(_step(frame))
        if not (foreign := [each for each in frames if not _is_of(each, _LIBRARY)]):
            return  # it waits: the machine is busy
        step = id(foreign[-1])
        since = seen[1] if seen is not None and seen[0] == step else now
        turns.step = step, since
        if now - since >= HELD - 2 * BEAT:
            self._tell(foreign)

    def _tell(self, foreign: list[FrameType]) -> None:
        theirs = (each for each in foreign if not _is_of(each, _INSTALLED) and not _is_ours(each))
        place = next(theirs, foreign[0])
        if place.f_code in self.told:
            return
        self.told.add(place.f_code)
        part = next((_PARTS[each.f_code.co_name] for each in foreign if _is_ours(each) and each.f_code.co_name in _PARTS), "code")
        logger.warning(
            "%s holds the event loop for more than %g s without awaiting, in %s() at %s:%d: until it returns, no request on that "
            "loop can keep its timeout; call what blocks in a thread (asyncio.to_thread)",
            part,
            HELD,
            place.f_code.co_qualname,
            place.f_code.co_filename,
            place.f_lineno,
        )


def _step(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of what a loop runs at present, the innermost first."""
    while frame is not None and frame.f_globals.get("__name__") not in _LOOPS:
        yield frame
        frame = frame.f_back


def _is_of(frame: FrameType, folder: str) -> bool:
    name = frame.f_code.co_filename
    return folder in name and (folder == _INSTALLED or _INSTALLED not in name)


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == _OURS


_watch = _Watch()


def turning() -> Turns:
    """Of the running loop: a context in which what holds it is told."""
    loop = asyncio.get_running_loop()
    turns = _watch.loops.get(loop)
    if turns is None:
        with _watch.lock:
            turns = _watch.loops[loop] = Turns()
    return turns
