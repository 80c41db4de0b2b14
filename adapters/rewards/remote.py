"""A reward model that runs on a server: vLLM, SGLang, text-embeddings-inference (TEI), or this package's own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar, Unpack

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import SecretStr

from bonmini_guard.adapters.bodies import parsed
from bonmini_guard.adapters.groups import all_or_none
from bonmini_guard.adapters.http import SCORING, Clients, Endpoint, Http, HttpOptions, checked_secret, checked_url
from bonmini_guard.adapters.http_errors import EndpointTimeout, EndpointUnreachable, MalformedAnswer, RequestRejected
from bonmini_guard.adapters.rewards.inputs import as_messages, writer
from bonmini_guard.adapters.rewards.probe import ABOUT_AN_INPUT, PREFIX, Probed, agree, check_scores, fingerprint_of, probe_pairs
from bonmini_guard.adapters.rewards.servers import KINDS, Inputs, Limits, Scores, ServerKind, kinds_of
from bonmini_guard.conversation import NOT_SHOWN
from bonmini_guard.engine.limiter import Limiter, request_lane
from bonmini_guard.engine.scorers import FunctionSession, Scale, inputs_digest, log_odds
from bonmini_guard.errors import ConfigurationError, needing
from bonmini_guard.reward.spec import ScorerSpec, key_in
from bonmini_guard.server import TOKEN
from bonmini_guard.validation import Amount, Count, checked

with needing("remote"):
    import httpx

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds for one attempt at most where nothing is said.
LONGEST_ATTEMPT = 10.0
#: A lost connection may mean another server behind the same address. Seconds between two probes for that reason at least.
PROBE_INTERVAL = 1.0


class RemoteRewardModel(Probed, Endpoint):
    """Scores answers with a reward model behind HTTP.

    A probe of fixed texts, for which building a guard blocks, tells it from others: see docs/remote-scoring.md, for options, too.

    Args:
        base_url: where the server is, without the route.
        kind: of server and route, one of ``servers.KINDS``; "bonmini" is ``bonmini-guard serve``.
        tokenizer: folder or id of the reward model, or its tokenizer; needed for all kinds but "bonmini". For pairs it may be left
            out: then nothing tells an answer that does not fit, or that spells control tokens.
        scores: "raw" or "probability" (their logit is the score). None: raw, and refused if they look like probabilities.
        has_zero: whether score 0 is the outside option. None takes what the checkpoint or the server says, else False.
        api_key: sent as bearer token; None takes the environment's ``BONMINI_GUARD_TOKEN``, "" sends none.
        http: timeout (60), attempt_timeout (10, or half of ``timeout`` if that is less), backoff (0.2), max_concurrency (16) and
            the like; see :class:`~bonmini_guard.adapters.http.HttpOptions`.

    Raises:
        ConfigurationError: a setting is wrong.
        CheckpointError: there is no usable tokenizer.
    """

    client_library = httpx
    #: Of answers: left out of what the server is asked about, or by the server itself, and so not served.
    not_shown = frozenset(NOT_SHOWN)
    #: Of prompts too.
    text_alone = True
    only_reads = True

    @checked
    def __init__(
        self,
        base_url: str,
        *,
        kind: ServerKind,
        tokenizer: Any = None,
        inputs: Inputs | None = None,
        model: str | None = None,
        scores: Scale | None = None,
        has_zero: bool | None = None,
        max_length: Count | None = None,
        api_key: SecretStr | str | None = None,
        batch_size: Count = 32,
        tolerance: Amount = 0.05,
        pinned: str | None = None,
        **http: Unpack[HttpOptions],
    ) -> None:
        settings = Http.of({**SCORING, **http})
        patience = settings.attempt_timeout or min(LONGEST_ATTEMPT, (settings.timeout or float("inf")) / 2)
        if settings.timeout is not None and patience >= settings.timeout:
            raise ConfigurationError("attempt_timeout must be less than timeout, or no attempt is ever given up")
        url, secret = checked_url(base_url, "api_key", KINDS[kind].route), checked_secret(api_key, TOKEN)
        super().__init__(url, secret, replace(settings, attempt_timeout=patience))
        self.kind = kind
        self._where, self._what = f"the server at {url}", f"reward server of kind {kind}"
        self.model = model
        self.tolerance = tolerance
        self._wire = KINDS[kind]
        self._meaning = scores
        self._writer = writer(kind, tokenizer, inputs, max_length)
        self._zero = has_zero if has_zero is not None or self._writer is None else bool(self._writer.has_zero)
        self._batch_size = batch_size
        self._fingerprint = pinned
        # Connections lost and opened so far, how many of them when the server last agreed with its probe, and when that was.
        self._lost = self._opened = 0
        self._agreed: tuple[tuple[int, int], float] | None = None
        self._probing = Limiter(1)

    def __repr__(self) -> str:
        return f"RemoteRewardModel({self.base_url!r}, kind={self.kind!r})"

    def session(self, messages: Sequence[BaseMessage]) -> FunctionSession:
        """A session on one prompt; it holds nothing but the prompt.

        Its ``score`` gives None for an answer that does not fit or cannot be sent, and raises EndpointError where the server gave
        no usable answer (``CircuitOpen`` if it was not even asked), ConfigurationError where it is another model than it was.
        """
        return FunctionSession(partial(self._score_all, list(messages), object()))

    @property
    def has_zero(self) -> bool:
        """Whether score 0 is the outside option. Asks a server of kind "bonmini" when first read, if nothing was declared."""
        if self._zero is None:
            self.fingerprint()
        return bool(self._zero)

    def fingerprint(self) -> str:
        """The probe's scores, or the own fingerprint of a server of kind "bonmini". Blocks when first asked.

        Raises:
            ConfigurationError: the server gives no usable scores, or no answer at all.
        """
        if self._agreed is None:
            self._probe_now()
        return self._fingerprint or ""

    def agrees_with(self, fingerprint: str) -> bool:
        """Whether a profile's fingerprint is this server's, within the tolerance."""
        return agree(fingerprint, self.fingerprint(), self.tolerance)

    # Probing

    async def ready(self) -> None:
        """Probe, if nobody has, on a loop of its own, and leave no connection there."""
        if self._agreed is not None:
            return
        try:
            async with asyncio.timeout(self.http.attempt_timeout):
                await self._trust()
        except TimeoutError as error:
            raise EndpointTimeout(f"no answer within {self.http.attempt_timeout} s", retryable=True) from error
        finally:
            with self._lock.held:
                clients = self._clients.pop(asyncio.get_running_loop(), None)
            if clients is not None:
                await clients.aclose()

    async def _trust(self) -> None:
        """Probe the server, unless that was done since a connection was last lost or opened."""
        if self._trusted():
            return
        # While one probes a dead server, the others are turned away and do not wait for it.
        self.circuit.check()
        async with self._probing.here():
            if not self._trusted():
                await self._probe()

    def _trusted(self) -> bool:
        if self._agreed is None:
            return False
        connections, when = self._agreed
        return connections == (self._lost, self._opened) or self.circuit.clock() - when < PROBE_INTERVAL

    async def _probe(self) -> None:
        lost = self._lost
        # The server's limits first: how many texts go into a request, and how long they may be.
        await self._connect()
        pairs = probe_pairs()
        inputs = [one for messages, answer in pairs for one in await self._prepare(messages, [answer])]
        sent = [one for one in inputs if one is not None]
        if not sent and self._writer is not None and self._writer.inputs == "text":
            raise ConfigurationError(
                f"as text, a server of kind {self.kind} would read other tokens than the chat template writes, because its "
                "tokenizer adds some of its own: use a kind that takes token ids (vllm, sglang)"
            )
        # What is of different conversations does not go into one request.
        alike = [list(group) for _, group in groupby(sent, itemgetter(0))] if self._wire.shared else [sent]
        batches = [batch for group in alike for batch in self._batches(group)]
        found: list[Scores] = await all_or_none([self._send(batch, quiet=False) for batch in batches])
        values = [value for scores in found for value in scores.values]
        # Our own server names what may be a check, alike for all.
        if None in values or len(set(values)) != 1 or found[0].fingerprint is None:
            check_scores([*values, *[None] * (len(pairs) - len(values))], self._meaning, self._wire.switch)
        if self._fingerprint is None and len(sent) > len(batches) and await self._minds_neighbours(sent, values):
            await self._probe()
            return
        self._agree(found[0].fingerprint or fingerprint_of([self._score(value) or 0.0 for value in values]))
        if self._zero is None:
            self._zero = found[0].has_zero
        # Connections opened for the probe lead to the server that was probed; one lost meanwhile may have led to another.
        self._agreed = ((lost, self._opened), self.circuit.clock())

    async def _minds_neighbours(self, sent: Sequence[Any], values: Sequence[float | None]) -> bool:
        """Whether a text scores otherwise beside longer ones than alone, as under padding that shows; then each goes alone."""
        least = min(range(len(sent)), key=lambda place: len(str(sent[place])))
        [alone] = (await self._send([sent[least]], quiet=False)).values
        beside = values[least]
        if alone is None or beside is None or abs(alone - beside) <= self.tolerance * max(1.0, abs(alone), abs(beside)):
            return False
        self._batch_size = 1
        logger.warning(
            "the reward server at %s gives a text %.4g alone and %.4g beside others: texts are sent one by one, which is slower",
            self.base_url,
            alone,
            beside,
        )
        return True

    def _agree(self, fingerprint: str) -> None:
        if self._fingerprint is None:
            self._fingerprint = fingerprint
        if not agree(self._fingerprint, fingerprint, self.tolerance):
            raise ConfigurationError(
                f"the reward server at {self.base_url} now scores like {fingerprint}, and it was {self._fingerprint}: another "
                "model is served there; bring the old one back, or build the guard anew with a profile for this one"
            )

    # Scoring

    async def _prepare(self, messages: Sequence[BaseMessage], candidates: Sequence[AIMessage]) -> list[Any]:
        if self._writer is None:
            return as_messages(messages, candidates)
        return await asyncio.to_thread(self._writer.make, messages, candidates)

    def _batches(self, inputs: Sequence[Any]) -> list[Sequence[Any]]:
        return [inputs[at : at + self._batch_size] for at in range(0, len(inputs), self._batch_size)]

    async def _score_all(
        self, messages: Sequence[BaseMessage], lane: object, candidates: Sequence[AIMessage]
    ) -> list[float | None]:
        """One score for each candidate; its requests wait in the lane of its session."""
        before, refused = request_lane.set(lane), list[RequestRejected]()
        try:
            await self._trust()
            inputs = await self._prepare(messages, candidates)
            batches = self._batches([one for one in inputs if one is not None])
            scored = await all_or_none([self._score_batch(batch, refused) for batch in batches])
            # A retry may have met another server than the one that agreed.
            await self._trust()
        finally:
            request_lane.reset(before)
        values = [value for scores in scored for value in scores]
        # One refusal is the answer's: the probe's texts had scores.
        if len(refused) > 1 and all(value is None for value in values):
            raise refused[0]
        if refused:
            logger.warning("the reward server refuses %d of %d candidates: they have no score", len(refused), len(values))
        found = iter(values)
        return [None if one is None else next(found) for one in inputs]

    async def _score_batch(self, batch: Sequence[Any], refused: list[RequestRejected]) -> list[float | None]:
        """None for an input that the server refuses, which is noted."""
        try:
            scores = await self._send(batch)
        except RequestRejected as error:
            if error.status not in ABOUT_AN_INPUT:
                raise
            if len(batch) == 1:
                refused.append(error)
                return [None]
            # Each alone: one that the server cannot take must not cost its neighbours their scores.
            alone = await all_or_none([self._score_batch([one], refused) for one in batch])
            return [value for values in alone for value in values]
        if scores.fingerprint is not None:
            self._agree(scores.fingerprint)
        return [None if value is None else self._score(value) for value in scores.values]

    def _score(self, value: float | None) -> float | None:
        return log_odds(value) if self._meaning == "probability" and value is not None else value

    async def _send(self, batch: Sequence[Any], quiet: bool = True) -> Scores:
        """One request, with its retries; ``quiet`` leaves out the server's words on an error, which may quote a candidate."""
        name = {"model": self.model} if self._wire.named and self.model is not None else {}
        body = json.dumps({**name, **self._wire.body(batch)}).encode()

        async def attempt(client: httpx.AsyncClient) -> Scores:
            watched = {"trace": self._watch} if (self._fingerprint or PREFIX).startswith(PREFIX) else {}
            said, _ = await self._post(client, self._wire.route, body, quiet=quiet, **watched)
            scores = self._wire.scores(parsed(said), len(batch))
            if scores.inputs is not None and scores.inputs != inputs_digest(body):
                raise MalformedAnswer("the reward server's answer belongs to another request", status=200, retryable=True)
            return scores

        return await self._ask(attempt)

    async def _once(self, attempt: Callable[[Any], Awaitable[T]], clients: Clients, whole: asyncio.Timeout) -> T:
        try:
            return await super()._once(attempt, clients, whole)
        except EndpointUnreachable:
            with self._lock.held:
                self._lost += 1
            raise

    async def _watch(self, event: str, _: Any) -> None:
        """Hear of connections, for a server may be replaced by another while nobody asks it anything (httpcore's trace events).

        A server that names its model with every answer needs no such watch.
        """
        if event == "connection.connect_tcp.complete":
            with self._lock.held:
                self._opened += 1

    # The server's description

    async def _look(self, client: httpx.AsyncClient) -> int:
        told: Limits = None, None, None
        if self._wire.about is not None:
            route, read = self._wire.about
            with suppress(httpx.HTTPError, TimeoutError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
                told = read((await self._get(client, route)).json())
        model, batch, length = told
        self.model = self.model or model
        self._batch_size = min(self._batch_size, batch or self._batch_size)
        if self._writer is not None:
            self._writer.limit(length)
        return await super()._look(client)


def route(spec: ScorerSpec) -> RemoteRewardModel:
    """The remote reward model of a spec."""
    table, endpoint = spec.route, spec.endpoint
    assert table is not None
    assert endpoint is not None
    known = kinds_of(table.server)
    name: str = table.name or next(iter(known))
    if name not in known:
        raise ConfigurationError(f"server = {table.server!r} has no route {name!r} here: use {' or '.join(map(repr, known))}")
    meaning: dict[str, Scale] = {"probability": "probability", "points": "raw"}
    return RemoteRewardModel(
        endpoint,
        kind=known[name],
        tokenizer=table.tokenizer,
        inputs=table.inputs,
        model=spec.model,
        scores=meaning.get(spec.scale),
        has_zero=spec.has_zero,
        api_key=key_in(spec.api_key_env),
        **table.http,
    )
