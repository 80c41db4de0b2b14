"""Sessions kept between requests: a guard's next loop comes as a request of its own, with the same conversation."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence

from langchain_core.messages import BaseMessage

from bonmini_guard.reward.model import RewardModel, RewardSession

#: Their memory is bounded by the model itself; this bounds the rest.
_MOST = 1024


class Sessions:
    """Open sessions by conversation, the least recently used closed first."""

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self._open: OrderedDict[str, RewardSession] = OrderedDict()

    async def of(self, messages: Sequence[BaseMessage]) -> RewardSession:
        """The session of a conversation."""
        key = _digest(messages)
        if key not in self._open:
            self._open[key] = self._model.session(messages)
        self._open.move_to_end(key)
        if len(self._open) > _MOST:
            _, oldest = self._open.popitem(last=False)
            await oldest.aclose()
        return self._open[key]


def _digest(messages: Sequence[BaseMessage]) -> str:
    whole = json.dumps([message.model_dump(mode="json") for message in messages], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
