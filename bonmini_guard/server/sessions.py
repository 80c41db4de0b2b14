"""Sessions kept between requests: a guard's next loop comes as a request of its own, with the same conversation."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence

from langchain_core.messages import BaseMessage

from bonmini_guard.engine.protocols import Scorer, ScoringSession

#: The memory of what was computed is bounded by the model itself; this bounds the rest: sessions, and bytes of their conversations.
_MOST, _MOST_BYTES = 1024, 2**26


class Sessions:
    """Open sessions by conversation, the least recently used closed first."""

    def __init__(self, model: Scorer) -> None:
        self._model = model
        self._open: OrderedDict[str, tuple[ScoringSession, int]] = OrderedDict()
        self._bytes = 0

    async def of(self, messages: Sequence[BaseMessage]) -> ScoringSession:
        """The session of a conversation."""
        whole = json.dumps([message.model_dump(mode="json") for message in messages], sort_keys=True).encode()
        key = hashlib.sha256(whole).hexdigest()
        if key not in self._open:
            self._open[key] = self._model.session(messages), len(whole)
            self._bytes += len(whole)
        self._open.move_to_end(key)
        while len(self._open) > 1 and (len(self._open) > _MOST or self._bytes > _MOST_BYTES):
            _, (oldest, size) = self._open.popitem(last=False)
            self._bytes -= size
            await oldest.aclose()
        return self._open[key][0]
