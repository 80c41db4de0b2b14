"""What of a prompt its judge cannot read: images, audio and files in a prompt are never judged unseen without a word."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import InputError

logger = logging.getLogger(__name__)


def check_seen(scorer: Any, messages: Iterable[Any], *, refuse: bool) -> None:
    """Refuse a prompt with a part that its judge cannot read and does not declare as ``not_shown``, or tell of it once.

    A scorer with ``text_alone`` reads text alone; functions get whole messages.

    Raises:
        InputError: it holds such a part, and is to be refused.
    """
    if not getattr(scorer, "text_alone", False):
        return
    several = [message for message in messages if not isinstance(getattr(message, "content", None), str)]
    found = {kind for message in several for kind in Turn.of(message).kinds}
    for kind in sorted(found - frozenset(getattr(scorer, "not_shown", ()))):
        if refuse:
            raise InputError(
                f"the prompt holds a part of type {kind!r}, which the reward model cannot read: give a function or a server that "
                f"can, or load it with not_shown=[..., {kind!r}] if an answer can be judged without it"
            )
        tell_of(kind, "the reward model cannot read it, and judges without it")


@functools.cache
def tell_of(kind: str, what: str) -> None:
    """A warning, once for each kind."""
    logger.warning("a prompt holds a part of type %r: %s", kind, what)
