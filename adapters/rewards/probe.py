"""The start-up probe: fixed pairs whose scores tell whether a server gives raw scores, and later whether it is still the same."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import zip_longest

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from bonmini_guard.adapters.http_errors import EndpointError, MalformedAnswer, RequestRejected
from bonmini_guard.engine.bridge import run_sync
from bonmini_guard.engine.scorers import Scale
from bonmini_guard.errors import ConfigurationError

logger = logging.getLogger(__name__)
#: Begins the fingerprint of a server that does not name its model.
PREFIX = "probe:"
#: Refusals that may be about one input, of a request of several or of a server that has passed the probe.
ABOUT_AN_INPUT = (400, 413, 422)
_SPREAD = 1e-6
_PAIRS = (
    ("What is 2 + 2?", "2 + 2 is 4."),
    ("What is 2 + 2?", "Bananas, and so is Tuesday."),
    ("Write a short greeting for a colleague.", "Good morning! I hope that you slept well."),
    ("Write a short greeting for a colleague.", "no"),
    ("Name a capital in Europe.", "Paris is the capital of France."),
    ("Name a capital in Europe.", "I will not tell you, you fool!!!"),
    ("The film was", " a delight from the first scene to the last: warm, funny and well played."),
    ("The film was", " dull, awful and far too long; the plot made no sense and the cast was bored."),
)


class Probed:
    """A scorer on a server, whose fingerprint are the scores of fixed pairs; a subclass says what and where it is."""

    _what: str
    _where: str

    async def ready(self) -> None:
        """Probe the server, unless that was done."""
        raise NotImplementedError

    def check(self) -> None:
        """Probe the server, for whoever builds a guard. One that cannot be reached is probed before its first score instead.

        Raises:
            ConfigurationError: it gives no usable scores.
        """
        try:
            run_sync(self.ready)
        except (RequestRejected, MalformedAnswer) as error:
            raise ConfigurationError(f"{self._where} is no {self._what}: {error}") from error
        except EndpointError as error:
            logger.warning("%s does not answer yet: %s", self._where, error)

    def _probe_now(self) -> None:
        try:
            run_sync(self.ready)
        except EndpointError as error:
            raise ConfigurationError(f"no scores from {self._where} ({error}): start it first") from error


def probe_pairs() -> list[tuple[list[BaseMessage], AIMessage]]:
    """The conversations and answers that are scored; the same in every release, since fingerprints rest on them."""
    return [([HumanMessage(prompt)], AIMessage(answer)) for prompt, answer in _PAIRS]


def check_scores(scores: Sequence[float | None], declared: Scale | None, switch: str) -> None:
    """Refuse what cannot be raw scores of the probe's pairs, or not what was declared; ``switch`` says how raw ones are had."""
    finite = [score for score in scores if score is not None]
    if len(finite) < len(scores):
        raise ConfigurationError("the reward server left a probe text without a score: check its limits of length and batch")
    if max(finite) - min(finite) < _SPREAD:
        raise ConfigurationError(
            f"the reward server scores {finite[0]:g} whatever the text: it is no reward model, or one behind a softmax; {switch}"
        )
    within = all(0 <= score <= 1 for score in finite)
    if within and declared is None:
        raise ConfigurationError(
            "every score of the reward server lies between 0 and 1: these look like probabilities, and a threshold of 0 would "
            f"accept everything; {switch}, or declare scores='probability' (or scores='raw' if they are raw after all)"
        )
    if declared == "probability" and not within:
        raise ConfigurationError("scores='probability' was declared, and the reward server gives other numbers: leave it out")


def fingerprint_of(scores: Sequence[float]) -> str:
    """The probe's scores as a fingerprint, to two decimals: engines and batch sizes differ behind them."""
    return PREFIX + ",".join(f"{score:.2f}" for score in scores)


def agree(one: str, other: str, tolerance: float) -> bool:
    """Whether two fingerprints are those of one model: every score within ``tolerance`` times the larger of 1 and its size."""
    if one == other:
        return True
    if not one.startswith(PREFIX) or not other.startswith(PREFIX):
        return False
    try:
        ours, theirs = ([float(score) for score in text.removeprefix(PREFIX).split(",")] for text in (one, other))
    except ValueError:
        return False
    # No score is near to a NaN.
    pairs = zip_longest(ours, theirs, fillvalue=math.nan)
    return all(abs(a - b) <= tolerance * max(1.0, abs(a), abs(b)) for a, b in pairs)
