"""Draw candidates from a server: what its dialects have in common. The body of a request is rendered once; a draw adds its seed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import SecretStr

from bonmini_guard.adapters.answers import Answer, keep
from bonmini_guard.adapters.describing import described
from bonmini_guard.adapters.http import Endpoint, Http, HttpOptions
from bonmini_guard.adapters.reasoning import Tags, checked_tags, split_thoughts
from bonmini_guard.adapters.requests import Dialect, stop_strings
from bonmini_guard.engine.fingerprints import UNKNOWN, sampling, text_of
from bonmini_guard.engine.limiter import request_lane
from bonmini_guard.engine.protocols import NO_OPTIONS, DrawRequest
from bonmini_guard.validation import Amount, Count, Must, check_names, checked, is_number

_TopP = Annotated[float, Must("a number above 0 and of 1 at most", lambda value: is_number(value) and 0 < value <= 1)]
Rendered = tuple[Sequence[BaseMessage], Mapping[str, Any], dict[str, Any]]


class ServedGenerator(Endpoint):
    """Base of the generators that ask a server. A subclass makes one attempt, and says who it is.

    Args:
        settings: the draws' parameters, by the server's names; ``temperature`` and ``stop`` among them. The others are as theirs.
    """

    #: Of servers, in fingerprints of profiles of schema 1.
    family: str
    send_seed = True

    def __init__(  # noqa: PLR0917 - called by two subclasses
        self,
        base_url: str,
        secret: SecretStr | None,
        dialects: Mapping[str, Dialect],
        mode: str,
        settings: Mapping[str, Any],
        accept_truncated: bool,
        stream: bool,
        split_reasoning: Tags,
        http: HttpOptions,
    ) -> None:
        check_names(http, {*inspect.signature(type(self)).parameters, *HttpOptions.__annotations__} - {"http"})
        super().__init__(base_url, secret, Http.of(http))
        self.mode = mode
        self.stream = stream
        self.accept_truncated = accept_truncated
        self._tags = checked_tags(split_reasoning)
        self._dialect = dialects[mode]
        self._settings = {**settings, "stop": stop_strings(settings["stop"])}

    def renew(self) -> None:
        """No connections, and no requests under way."""
        super().renew()
        # Of requests under way: their draws share one body.
        self._bodies: WeakKeyDictionary[object, Rendered] = WeakKeyDictionary()

    @property
    def deterministic(self) -> bool:
        """Whether every draw would be the same."""
        return bool(self._settings["temperature"] == 0)

    async def draw(self, request: DrawRequest) -> AIMessage:
        """One answer, from one request.

        Raises:
            EndpointError: the endpoint gave no usable answer; the subclass says why.
            ConfigurationError: a call option is unknown, or would spoil the draw.
        """
        body = self._body(request)
        answers = await self._ask(partial(self._attempt, body=body, count=1))
        return self._accept(answers[0] if len(answers) == 1 else keep(answers, 1)[0], request, body)

    # For subclasses

    def describe(self, options: Mapping[str, Any] = NO_OPTIONS) -> dict[str, Any]:
        """What draws: the server, its model and the draws' settings, a call's options in their stead. May ask for the model."""
        renamed = {self._dialect.renamed.get(key, key): value for key, value in sampling(options).items()}
        if "stop" in renamed:
            renamed["stop"] = stop_strings(renamed["stop"])
        own = self._identity()
        if "extra_body" in renamed and "extra_body" in own:  # as requests merge them
            renamed["extra_body"] = {**own["extra_body"], **renamed["extra_body"]}
        settings = described({**own, **renamed})
        where = {"class": type(self).__name__, "server": described(self.base_url), "model": self.served_model() or UNKNOWN}
        return where | {"settings": {key: value for key, value in settings.items() if value}}

    def fingerprint(self) -> str:
        """The description as text."""
        return text_of(self.describe())

    def earlier_fingerprint(self) -> str:
        """As profiles of schema 1 have it: the model's name and the sampling settings."""
        return f"{self.family}:{self.served_model() or 'unknown'}:{json.dumps(self._identity(), sort_keys=True, default=str)}"

    def served_model(self) -> str | None:
        """The name of the model that answers, if the server says it; blocks up to 5 s when it has to be asked."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """What a fingerprint tells of the draws' settings."""
        thoughts = {} if self._tags is None else {"split_reasoning": self._tags}
        return self._settings | {"mode": self.mode, "accept_truncated": self.accept_truncated} | thoughts

    async def _attempt(self, client: Any, body: Mapping[str, Any], count: int) -> list[Answer]:
        """Ask once for so many answers."""
        raise NotImplementedError

    def _body(self, request: DrawRequest) -> dict[str, Any]:
        lane = request_lane.get()
        known = None if lane is None else self._bodies.get(lane)
        if known is None or known[0] is not request.messages or known[1] is not request.options:
            known = (request.messages, request.options, self._dialect.render(request.messages, self._settings, request.options))
            if lane is not None:
                self._bodies[lane] = known
        # Some servers want seeds above 0, and some take 0 for "none"; draws have theirs below 2**31.
        return {**known[2], "seed": request.seed or 2**31} if self.send_seed else known[2]

    def _accept(self, answer: Answer, request: DrawRequest, body: Mapping[str, Any]) -> AIMessage:
        if self._tags is not None:
            thought, text = split_thoughts(answer.turn.text, self._tags)
            answer = replace(answer, turn=replace(answer.turn, text=text, reasoning=answer.turn.reasoning or thought))
        answer.check(self.accept_truncated)
        return answer.message(request.seed, body.get("stop") or ())


@checked
def check_sampling(max_tokens: Count | None, temperature: Amount | None, top_p: _TopP | None, top_k: Count | None = None) -> None:
    """Raise ConfigurationError for settings of sampling that no server takes; None leaves one to the server."""
