"""Batches across requests: one thread computes, calls of all requests wait in one queue.

A batch takes calls in their order of arrival up to a budget of tokens. A call that has had several batches in a row goes to
the end, so that a large one does not hold up the others. While the queue is short, the thread waits a moment for more, as
long as waiting has paid lately; a lone request is never kept waiting.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from torch import Tensor

from bonmini_guard.engine.workers import Workers
from bonmini_guard.forks import renewed_in_children
from bonmini_guard.reward.scoring import SegmentScorer
from bonmini_guard.reward.trunks import TrunkStore
from bonmini_guard.reward.work import Piece, Text, Work

logger = logging.getLogger(__name__)

#: Batches a call may fill before others have their turn.
_TURN = 4
#: Padded batches that are sorted by length together.
_SORTED = 4
#: What is said to whoever scores with a closed model.
CLOSED = "the reward model is closed"
#: Seconds under which waiting for more is not tried.
_SHORTEST = 1e-4


class MicroBatcher:
    """Computes calls in batches.

    Args:
        budget: most tokens of a batch.
        window: most seconds to wait for more calls; 0 never waits.
        overlap: start a batch before the scores of the last one are read; pays where computing is asynchronous.
    """

    def __init__(
        self, scorer: SegmentScorer, store: TrunkStore, budget: int, *, window: float = 0.0, overlap: bool = False
    ) -> None:
        self.batches = self.tokens = 0
        self._scorer, self._store, self._budget, self._overlap = scorer, store, budget, overlap
        self._longest_window, self._window = window, 0.0
        self._closed = False
        self._thread = Workers(1, "bonmini-guard-scoring")
        self.renew()
        renewed_in_children(self)

    def renew(self) -> None:
        """Nothing waits: at first, and in a child after a fork, whose parent computes what was waiting."""
        self._changed = threading.Condition()
        self._queue: deque[Work] = deque()
        self._turn = 0
        self._running = False
        self._unread: tuple[Sequence[Piece], Tensor] | None = None

    def submit(self, work: Work) -> None:
        """Queue a call; its future gets the scores. RuntimeError once it is closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError(CLOSED)
            self._queue.append(work)
            self._changed.notify()
            if not self._running:
                self._running = True
                self._thread.submit(self._run)

    @property
    def waiting(self) -> int:
        """Calls that are not wholly computed."""
        return len(self._queue)

    def close(self) -> None:
        """Drop what waits, and end the thread after the batch that is running."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            for work in list(self._queue):
                work.fail(RuntimeError(CLOSED))
        self._thread.shutdown(wait=False)

    def _run(self) -> None:
        """Compute until nothing waits."""
        while True:
            while self._queue:
                self._compute(self._next_batch())
            self._read()
            with self._changed:
                if not self._queue:
                    self._running = False
                    return

    def _next_batch(self) -> list[Piece]:
        room = self._budget if self._scorer.packs else self._budget * _SORTED
        pieces: list[Piece] = []
        deadline = 0.0
        while True:
            room = self._fill(pieces, room)
            if room <= 0 or self._queue or not pieces:
                return pieces
            if len({piece.group.work for piece in pieces}) > 1:
                # Calls do come together: from here on a wait may pay.
                self._window = min(self._longest_window, max(2 * self._window, 2 * _SHORTEST))
            deadline = deadline or monotonic() + self._window
            if not self._window or not self._wait(deadline):
                return pieces

    def _fill(self, pieces: list[Piece], room: int) -> int:
        """Take pieces of the calls that wait, and give the room that is left; a call stays in the queue until all is taken."""
        while self._queue and (room > 0 or not pieces):
            work = self._queue[0]
            taken = [] if work.future.done() else self._take(work, room, not pieces)
            pieces += taken
            room -= sum(len(piece.segment.ids) for piece in taken)
            if work.left:
                # It has filled a batch; after a few in a row it goes to the end.
                self._turn = (self._turn + 1) % _TURN
                self._queue.rotate(0 if self._turn else -1)
                return 0
            self._queue.popleft()
            self._turn = 0
        return room

    def _take(self, work: Work, room: int, first: bool) -> list[Piece]:
        try:
            return work.take(room, self._store if self._scorer.packs else None, first)
        except Exception as error:
            # Cutting a kept trunk copies it: out of memory, perhaps. This call fails; the thread goes on with the others.
            logger.warning("scoring failed: %s", type(error).__name__)
            work.fail(error)
            return []

    def _wait(self, deadline: float) -> bool:
        """Wait for another call; the window shrinks to nothing where none comes."""
        with self._changed:
            left = deadline - monotonic()
            if self._queue or self._closed or left < _SHORTEST:
                return bool(self._queue)
            came = self._changed.wait(left)
        if not came:
            self._window /= 2
        return came

    def _compute(self, pieces: Sequence[Piece]) -> None:
        by_segment = {piece.segment: piece for piece in pieces}
        for segments in self._scorer.batches(list(by_segment), self._budget):
            batch = [by_segment[segment] for segment in segments if not by_segment[segment].group.work.future.done()]
            if batch:
                self._compute_batch(batch)

    def _compute_batch(self, batch: Sequence[Piece]) -> None:
        try:
            scores, trunks = self._scorer([piece.segment for piece in batch])
            for piece in batch:
                if piece.segment in trunks:
                    piece.group.computed(trunks[piece.segment], self._store)
        except Exception as error:
            self._compute_apart(batch, error)
            return
        self.batches += 1
        self.tokens += sum(len(piece.segment.ids) for piece in batch)
        self._read((batch, scores))

    def _compute_apart(self, batch: Sequence[Piece], error: Exception) -> None:
        """After an error each call is computed by itself: one that cannot be does not take others with it."""
        works = list(dict.fromkeys(piece.group.work for piece in batch))
        if len(works) == 1:
            logger.warning("scoring failed: %s", type(error).__name__)
            works[0].fail(error)
            return
        for work in works:
            self._compute_batch([piece for piece in batch if piece.group.work is work])
        self._read()

    def _read(self, latest: tuple[Sequence[Piece], Tensor] | None = None) -> None:
        """Hand out the scores of a batch, of the one before it where they overlap; on a GPU this waits for them."""
        unread = latest
        if self._overlap:
            unread, self._unread = self._unread, latest
        if unread is None:
            return
        batch, computed = unread
        try:
            values: Any = computed.tolist()
        except Exception as error:
            self._compute_apart(batch, error)
            return
        scored: dict[Work, dict[Text, float]] = {}
        for piece, score in zip(batch, values, strict=True):
            if piece.text is not None:
                scored.setdefault(piece.group.work, {})[piece.text] = score
        for work, scores in scored.items():
            work.settle(scores)
