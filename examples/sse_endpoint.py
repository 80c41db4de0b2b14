r"""An accelerator behind a chat endpoint with server-sent events: progress while it draws, then the answer.

Offline: the message desk of the demonstration, for refunds (``make setup`` installs what it needs). Start it with
``python -m examples.sse_endpoint`` and ask::

    curl -N -X POST http://127.0.0.1:8000/chat -H "content-type: application/json" \
        -d '{"prompt": "Refund notice.\nCustomer: Omar\nItem: 3 bath towels\nRefund: $24"}'

A client that goes away cancels its request, and with it the draws.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import BaseModel, Field

from bonmini_guard import BestOfMiniN, NoAcceptableResponse
from bonmini_guard.demo.desk import make_note, messages
from bonmini_guard.demo.run import MODELS, models
from bonmini_guard.errors import BonMiniGuardError
from bonmini_guard.runnables.callbacks import PROGRESS

Guard = Runnable[Any, AIMessage]


class Question(BaseModel):
    """The body of a request."""

    prompt: str = Field(min_length=1, max_length=2000)


def desk() -> Guard:
    """The desk's model with the profile that was calibrated for it; a prompt is a note, asked after one worked example."""
    generator, scorer = models()
    profile = MODELS / "accelerator.json"
    guard = BestOfMiniN(generator=generator, reward_model=scorer, profile=profile, progress=True, timeout=60.0)
    example = messages(make_note("refund", "any"), "any")[:-1]
    return RunnableLambda(lambda note: [*example, {"role": "user", "content": note}]) | guard


async def tell(guard: Guard, prompt: str) -> AsyncIterator[str]:
    """The events of one request."""
    try:
        async for event in guard.astream_events(prompt, version="v2"):
            if event["event"] == "on_custom_event" and event["name"] == PROGRESS:
                yield sse("progress", event["data"])
            elif event["event"] == "on_chain_end" and not event["parent_ids"]:
                message = event["data"]["output"]
                yield sse("answer", {"text": message.text, **message.response_metadata["bonmini_guard"]})
    except NoAcceptableResponse as refused:
        yield sse("refused", {"reason": refused.result.reason})
    except BonMiniGuardError as error:
        yield sse("error", {"kind": type(error).__name__})


def sse(event: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


def build(guard: Guard) -> FastAPI:
    """The application."""
    app = FastAPI(title="Guarded chat")

    @app.post("/chat")
    async def chat(question: Question) -> StreamingResponse:
        """Progress and the answer."""
        return StreamingResponse(tell(guard, question.prompt), media_type="text/event-stream")

    return app


def main() -> None:
    """Serve on the loopback interface."""
    import uvicorn

    uvicorn.run(build(desk()), host="127.0.0.1", port=8000)


if __name__ == "__main__":
    main()
