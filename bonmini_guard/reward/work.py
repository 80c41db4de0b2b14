"""One scoring call as work for the batches: which texts it has, and which beginning they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from bonmini_guard.reward.packed import Segment, Trunk
from bonmini_guard.reward.pooling import alike
from bonmini_guard.reward.trunks import TrunkStore

Text = tuple[int, ...]

#: Tokens that sharing a beginning must save to be worth its second softmax.
_WORTH = 32


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """A part of a batch, of a group of texts; ``text`` is the one whose score it gives, None for a shared beginning."""

    segment: Segment
    group: Group
    text: Text | None


class Work:
    """One call: texts, and a future that gets the score of each.

    Args:
        texts: token ids, none empty, each with the number of the conversation it has (see :class:`TrunkStore`).
        session: that will want the beginnings again; None if none will.
    """

    def __init__(self, texts: Iterable[tuple[Text, int]], session: int | None = None) -> None:
        distinct = dict(texts)
        self.future: Future[dict[Text, float]] = Future()
        self._scores: dict[Text, float] = {}
        self._texts = len(distinct)
        levels = sorted(set(distinct.values()))
        self._groups = deque(
            Group(self, [text for text in distinct if distinct[text] == level], None if session is None else (session, level))
            for level in levels
        )
        if not distinct:
            self.future.set_result({})

    @property
    def left(self) -> bool:
        """Whether pieces are left to take."""
        return bool(self._groups) and not self.future.done()

    def take(self, room: int, store: TrunkStore | None, first: bool) -> list[Piece]:
        """The next pieces, of at most ``room`` tokens together; the ``first`` of a batch is taken however long it is.

        Without a store beginnings are not shared.
        """
        taken: list[Piece] = []
        while self._groups:
            pieces = self._groups[0].take(room, store, first and not taken)
            taken += pieces
            room -= sum(len(piece.segment.ids) for piece in pieces)
            if self._groups[0].texts:
                break
            self._groups.popleft()
        return taken

    def settle(self, scores: Mapping[Text, float]) -> None:
        """Note scores; the last ones end the call."""
        self._scores |= scores
        if len(self._scores) == self._texts and self.future.set_running_or_notify_cancel():
            self.future.set_result(self._scores)

    def fail(self, error: BaseException) -> None:
        """End the call with an error."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Group:
    """Texts of one call that have the same conversation, shortest first."""

    def __init__(self, work: Work, texts: Sequence[Text], key: tuple[int, int] | None) -> None:
        self.work = work
        self._key = key
        #: That are left to take.
        self.texts = deque(sorted(texts, key=len))
        self._alone = len(texts) == 1
        self._root: Segment | None = None
        self._trunk: Trunk | Segment | None = None
        self._planned = False

    def take(self, room: int, store: TrunkStore | None, first: bool) -> list[Piece]:
        """The next pieces that fit; see :meth:`Work.take`."""
        if store is not None and not self._planned:
            self._plan(store)
        self._planned = True
        pieces: list[Piece] = []
        if (root := self._root) is not None:
            if len(root.ids) > room and not first:
                return pieces
            pieces.append(Piece(root, self, None))
            room -= len(root.ids)
            self._trunk, self._root = root, None
        start = 0 if self._trunk is None else len(self._trunk.ids)
        # A text that a session scores alone is kept whole: the next ones will show how much of it is shared.
        keeps = store is not None and self._alone and self._key is not None and self._trunk is None
        while self.texts:
            size = len(self.texts[0]) - start
            if size > room and not (first and not pieces):
                break
            text = self.texts.popleft()
            pieces.append(Piece(Segment(text[start:], self._trunk, keeps and size > _WORTH), self, text))
            room -= size
        return pieces

    def computed(self, trunk: Trunk, store: TrunkStore) -> None:
        """A kept segment of this group is there: for its further batches, and for its session."""
        if isinstance(self._trunk, Segment):
            self._trunk = trunk
        if self._key is not None:
            store.put(self._key, trunk)

    def _plan(self, store: TrunkStore) -> None:
        # What lies between the least and the greatest begins as both do. Every text keeps a token of its own, to be read at.
        common = self.texts[0][: min(alike(min(self.texts), max(self.texts)), len(self.texts[0]) - 1)]
        kept = None if self._key is None else store.get(self._key)
        if kept is not None and self._key is not None:
            matched = alike(kept.ids, common)
            if matched >= _WORTH:
                self._trunk = kept if matched == len(kept.ids) else kept.cut(matched)
                store.put(self._key, self._trunk)
                return
        if (len(self.texts) - 1) * len(common) >= _WORTH:
            self._root = Segment(common, keep=True)
