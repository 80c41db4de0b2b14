"""What stands behind the names that clients ask for: guards, and upstreams that are passed through."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from uuid import uuid4

from starlette.types import Send

from bonmini_guard.adapters.http import Endpoint
from bonmini_guard.adapters.http_errors import EndpointError
from bonmini_guard.engine.result import GuardResult
from bonmini_guard.errors import NoAcceptableResponse
from bonmini_guard.gateway.refusals import check_judged
from bonmini_guard.gateway.wire import ChatRequest, abstention, completion
from bonmini_guard.runnables.conduct import Guard
from bonmini_guard.runnables.shadow import ShadowBestOfMiniN
from bonmini_guard.server.door import Refused

OnAbstain = Literal["refusal", "message", "error"]
#: What is passed through of an answer beside its body and status.
_SAID = ("content-type", "retry-after", "retry-after-ms")


@dataclass(frozen=True)
class Guarded:
    """A guard as a model.

    Attributes:
        on_abstain: "refusal" and "message" answer 200, "error" 422.
        shadow: share of conversations (of requests, where none is named) that get the upstream's answer, judged afterwards.
        client_sampling: whether clients may change how is drawn.
    """

    guard: Guard
    on_abstain: OnAbstain = "refusal"
    shadow: float = 0.0
    client_sampling: bool = False

    @cached_property
    def watcher(self) -> ShadowBestOfMiniN:
        """The guard on trial."""
        return ShadowBestOfMiniN(self.guard)

    async def answer(
        self, request: ChatRequest, group: str | None, told: Callable[[str, GuardResult, int], None]
    ) -> dict[str, Any]:
        """The body of the answer.

        Raises:
            Refused: the guard abstained, where that is an error, or nothing could be judged.
            BonMiniGuardError: as from :meth:`~bonmini_guard.runnables.conduct.Guard.conduct`.
        """
        messages, (options, ignored) = request.prompt(), request.options(self.client_sampling)
        # A conversation is in shadow or it is not; chance decides where there is none.
        in_shadow = random.Random(group).random() < self.shadow
        ignored += ["seed"] if in_shadow and request.seed is not None else []  # which explored draws would share
        further = {"ignored": sorted(ignored)} if ignored else {}
        if in_shadow:
            run = uuid4()
            config: Any = {"metadata": {} if group is None else {"group": group}, "run_id": run}
            message = await self.watcher.ainvoke(messages, config, **options)
            about: dict[str, Any] = {"decision": "shadow", "draws": 1, "request_id": run.hex} | further
            return completion(request.model, run.hex, message, message.usage_metadata or {}, about)

        async def conduct() -> GuardResult:
            conducted = await self.guard.conduct(messages, options, seed=request.seed, group=group)
            told(request.model, conducted, self.guard.engine.policy.budget)
            return conducted

        # An abstention is final for its conversation: asked again, it is not drawn again.
        result = await (conduct() if group is None else self.guard.once(conduct, messages, options, lambda: group))
        about = result.metadata() | {"request_id": result.request_id} | further
        check_judged(result)
        if result.message is None and self.on_abstain == "error":
            raise Refused(422, "abstained", str(NoAcceptableResponse(result)), about=about)  # what no client repeats by itself
        said = result.message or abstention(self.guard.options["abstain_message"], self.on_abstain == "message")
        return completion(request.model, result.request_id, said, result.usage, about)

    async def aclose(self) -> None:
        """Finish what goes on in the background."""
        await (self.watcher if self.shadow else self.guard).afinish()


@dataclass(frozen=True)
class Upstream:
    """An upstream, asked without a guard.

    Attributes:
        model: what it calls the model; None leaves the client's name.
    """

    endpoint: Endpoint
    model: str | None

    async def pass_on(self, body: bytes, send: Send) -> int:
        """Send a request on as it is, and its answer back as it comes; the status: 503 if the upstream broke off.

        Raises:
            EndpointError: there is no answer.
            OSError: the client went away.
        """
        asked = json.loads(body) | ({} if self.model is None else {"model": self.model})
        async with self.endpoint.passing("/chat/completions", json.dumps(asked).encode()) as response:
            status = int(response.status_code)
            if not 200 <= status < 600:
                raise EndpointError(f"the endpoint answered with {status}, which is no status of HTTP", status=status)
            given = {"content-type": "application/json"} | {
                name: response.headers[name] for name in _SAID if name in response.headers
            }
            headers = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            try:
                async for piece in response.aiter_bytes():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except OSError:
                raise
            except Exception:  # the client sees a body without its end
                return 503
            await send({"type": "http.response.body", "body": b""})
            return status
